"""Slide decoding in a child process: native decoders can crash, and then they take only that process with them."""

from .process import DESCRIBE_TIMEOUT_S, Decoder
from .protocol import Decoding, SlideInfo
from .slide import DecodedSlide, decoded_slide

__all__ = ["DESCRIBE_TIMEOUT_S", "DecodedSlide", "Decoder", "Decoding", "SlideInfo", "decoded_slide"]
