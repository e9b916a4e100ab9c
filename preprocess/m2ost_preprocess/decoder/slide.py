"""One slide behind a decoder, with the part of a reader's face that reads pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..readers.base import Pixels
from .process import Decoder
from .protocol import SlideInfo


class DecodedSlide:
    """Level-0 pixels and overview of a slide that a child process decodes.

    Parameters
    ----------
    decoder : Decoder
    path : Path
        The slide's file, already resolved.
    info : SlideInfo
        What the decoder says of it.

    Attributes
    ----------
    size : (int, int)
        Width and height of level 0 in pixels.
    """

    def __init__(self, decoder: Decoder, path: Path, info: SlideInfo) -> None:
        self._decoder, self._path, self._thumbnail = decoder, path, info.thumbnail
        self.size = info.size

    def read(self, left: int, top: int, width: int, height: int) -> Pixels:
        """Level-0 pixels of a rectangle that lies inside the slide; see :meth:`Decoder.read`."""
        return self._decoder.read(self._path, left, top, width, height)

    def thumbnail(self, max_px: int) -> Pixels:
        """The whole slide, made small: its longer side at most ``max_px``, and that of ``SlideInfo.thumbnail``."""
        image = Image.fromarray(self._thumbnail)
        image.thumbnail((max_px, max_px), Image.Resampling.BOX)
        return np.asarray(image)
