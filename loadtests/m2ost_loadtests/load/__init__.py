"""Loads of spots, with Locust."""
