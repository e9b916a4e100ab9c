"""OpenSlide: NDPI, MRXS, SCN, BIF, DICOM … and whatever cuCIM does not read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from PIL import Image, ImageColor

from ..errors import UnreadableSlide
from .base import Pixels, Resolution, SlideReader
from .dicom import frames_contradict_header, ycbcr_to_rgb

DEFAULT_TILE_PX = 512
"""Side of what is read at once where OpenSlide does not say how large the file's tiles are, in pixels."""

_SIDES = ("width", "height")


class OpenSlideReader(SlideReader):
    """A slide opened by OpenSlide. Regions that were never scanned show the slide's background colour.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    UnreadableSlide
        If OpenSlide cannot open the file.
    """

    name = "openslide"

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._slide = openslide.OpenSlide(str(path))
        except (openslide.OpenSlideError, OSError) as error:
            raise UnreadableSlide(path.name, f"OpenSlide cannot open it: {error}") from error
        # All that is asked of the handle later is pixels: one that has failed refuses whatever else, in all threads.
        properties = dict(self._slide.properties)
        self._levels = list(self._slide.level_dimensions)
        self._tile_sizes = [_tile_size(properties, level) for level in range(len(self._levels))]
        self.size = self._levels[0]
        self.resolution = Resolution.from_tag(
            properties.get(openslide.PROPERTY_NAME_MPP_X),
            properties.get(openslide.PROPERTY_NAME_MPP_Y),
            "openslide.mpp",
        )
        colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self._background = (*ImageColor.getrgb(f"#{colour}")[:3], 255)
        vendor = properties.get(openslide.PROPERTY_NAME_VENDOR)
        self._is_ycbcr = vendor == "dicom" and frames_contradict_header(path)
        if self._is_ycbcr:
            self.note = "colours corrected: the DICOM header says RGB, its JPEG frames are YCbCr"

    def _region(self, left: int, top: int, width: int, height: int, level: int) -> Image.Image:
        try:
            region = self._slide.read_region((left, top), level, (width, height))
        except openslide.OpenSlideError as error:
            # OpenSlide's errors stick to the handle: without a new one, every later read would fail too. The old one is
            # closed when no thread reads with it any more.
            self._slide = openslide.OpenSlide(str(self.path))
            raise UnreadableSlide(self.path.name, f"OpenSlide cannot decode x {left}, y {top}: {error}") from error
        if self._is_ycbcr:
            corrected = Image.fromarray(ycbcr_to_rgb(np.asarray(region)[..., :3]))
            corrected.putalpha(region.getchannel("A"))
            region = corrected
        if region.getchannel("A").getextrema() == (255, 255):
            return region.convert("RGB")
        backdrop = Image.new("RGBA", region.size, self._background)
        return Image.alpha_composite(backdrop, region).convert("RGB")

    def read_at(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        x, y = (
            round(at * full / own) for at, full, own in zip((left, top), self.size, self.levels[level], strict=True)
        )
        return np.asarray(self._region(x, y, width, height, level))

    def tile_size(self, level: int) -> tuple[int, int]:
        return self._tile_sizes[level]

    @property
    def levels(self) -> list[tuple[int, int]]:
        return self._levels

    @property
    def resident_bytes(self) -> int:
        return 0

    def close(self) -> None:
        self._slide.close()


def _tile_size(properties: Mapping[str, str], level: int) -> tuple[int, int]:
    # Of formats that do not say, OpenSlide's own cache holds what lies across these.
    width, height = (properties.get(f"openslide.level[{level}].tile-{side}") for side in _SIDES)
    return (int(width), int(height)) if width and height else (DEFAULT_TILE_PX, DEFAULT_TILE_PX)
