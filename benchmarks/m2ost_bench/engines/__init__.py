"""Engines on a CPU: how fast, how true, and what they leave to the tiler."""
