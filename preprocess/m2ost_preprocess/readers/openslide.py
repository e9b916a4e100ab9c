"""OpenSlide: NDPI, MRXS, SCN, BIF, DICOM … and the TIFFs that cuCIM does not read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from ..errors import UnreadableSlide
from . import native_errors
from .base import Pixels, Segments, Size, SlideReader, words_of
from .dicom import ycbcr_to_rgb

DEFAULT_TILE_PX = 512
"""Side of what is read at once where OpenSlide does not say how large the file's tiles are, in pixels."""

WHITE = (255, 255, 255, 255)
"""What lies behind transparent pixels, and where nothing was scanned."""

_SIDES = ("width", "height")


class OpenSlideReader(SlideReader):
    """A slide opened by OpenSlide. What is transparent, or was never scanned, is white.

    ``segments`` are the file's tiles, to look whether they are whole: OpenSlide does not. ``is_ycbcr`` says that its
    pixels are YCbCr that OpenSlide takes for RGB. Raises ``UnreadableSlide`` where OpenSlide cannot open the file.
    """

    name = "openslide"

    def __init__(self, path: Path, segments: Segments | None = None, *, is_ycbcr: bool = False) -> None:
        self.path = path
        self._segments, self._is_ycbcr = segments, is_ycbcr
        self._slide = self._open()
        # All that is asked of the handle later is pixels: one that has failed refuses whatever else, in all threads.
        self.properties = dict(self._slide.properties)
        self._levels = list(self._slide.level_dimensions)
        self._tile_sizes = [_tile_size(self.properties, level) for level in range(len(self._levels))]
        self.size = self._levels[0]

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(str(self.path))
        except (openslide.OpenSlideError, OSError) as error:
            raise UnreadableSlide(self.path.name, f"OpenSlide cannot open it: {words_of(error, self.path)}") from error

    def _region(self, left: int, top: int, width: int, height: int, level: int) -> Image.Image:
        slide, began = self._slide, native_errors.mark()
        try:
            region = slide.read_region((left, top), level, (width, height))
        except openslide.OpenSlideError as error:
            # OpenSlide's errors stick to the handle: without a new one, every later read would fail too. The old one is
            # closed when no thread reads with it any more.
            self._slide = self._open()
            words = words_of(error, self.path)
            raise UnreadableSlide(self.path.name, f"OpenSlide cannot decode x {left}, y {top}: {words}") from error
        complaint = native_errors.complaint(began)
        if complaint is not None:
            raise UnreadableSlide(self.path.name, f"OpenSlide cannot decode x {left}, y {top}: {complaint}")
        if self._is_ycbcr:
            # The alpha channel is not of these colours, and stays.
            corrected = Image.fromarray(ycbcr_to_rgb(np.asarray(region)[..., :3]))
            corrected.putalpha(region.getchannel("A"))
            region = corrected
        if region.getchannel("A").getextrema() == (255, 255):
            return region.convert("RGB")
        return Image.alpha_composite(Image.new("RGBA", region.size, WHITE), region).convert("RGB")

    def read_at(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        if self._segments is not None:
            self._segments.check(self._levels[level], left, top, width, height)
        x, y = (
            round(at * full / own) for at, full, own in zip((left, top), self.size, self.levels[level], strict=True)
        )
        return np.asarray(self._region(x, y, width, height, level))

    def tile_size(self, level: int) -> Size:
        return self._tile_sizes[level]

    @property
    def levels(self) -> list[Size]:
        return self._levels

    @property
    def resident_bytes(self) -> int:
        return 0

    def close(self) -> None:
        self._slide.close()


def _tile_size(properties: Mapping[str, str], level: int) -> Size:
    # Of formats that do not say, OpenSlide's own cache holds what lies across these.
    width, height = (properties.get(f"openslide.level[{level}].tile-{side}") for side in _SIDES)
    return (int(width), int(height)) if width and height else (DEFAULT_TILE_PX, DEFAULT_TILE_PX)
