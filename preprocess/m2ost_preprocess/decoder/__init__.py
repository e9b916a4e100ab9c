"""Slide decoding in a child process: native decoders can crash, and then they take only that process with them."""

from .process import Decoder
from .protocol import SlideInfo

__all__ = ["Decoder", "SlideInfo"]
