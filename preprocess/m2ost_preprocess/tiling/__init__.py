"""Slides to views: tiles decoded as needed, put together to regions, and cut."""
