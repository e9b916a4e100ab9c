"""Slide readers behind one interface: cuCIM, OpenSlide and plain images.

Native libraries crash, and print where they should raise: a slide is opened in a decoder's process alone
(:mod:`m2ost_preprocess.decoder`), which survives the one and hears the other.
"""

from .base import SlideReader
from .resolution import Resolution
from .select import open_slide, primary_file

__all__ = ["Resolution", "SlideReader", "open_slide", "primary_file"]
