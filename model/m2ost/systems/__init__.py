"""The article's systems, one file each, and their registry."""
