"""Slide readers behind one interface: cuCIM, OpenSlide and plain images."""

from .base import Resolution, SlideReader
from .select import READERS, SlideFormat, identify, open_slide, primary_file

__all__ = ["READERS", "Resolution", "SlideFormat", "SlideReader", "identify", "open_slide", "primary_file"]
