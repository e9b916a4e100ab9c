"""Measurements of a served release. Each is a command that prints ratios and writes JSON."""
