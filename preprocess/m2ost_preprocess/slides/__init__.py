"""Slides by name, and where on them spots are: tissue, grids, spot files."""

from .names import RootedSlide, SlideRoots, fingerprint, slide_files

__all__ = ["RootedSlide", "SlideRoots", "fingerprint", "slide_files"]
