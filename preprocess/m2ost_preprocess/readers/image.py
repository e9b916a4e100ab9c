"""Plain JPEG, PNG and TIFF images, decoded whole: the form in which spot data sets publish their slides."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ..errors import UnreadableSlide
from .base import Pixels, Resolution, SlideReader

MAX_PIXELS = 2**30
"""Largest plain image in pixels (3 GiB decoded); larger ones belong into a tiled pyramid."""

_FORMATS = ("JPEG", "PNG", "TIFF")
_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}  # TIFF ResolutionUnit: inch, centimetre
_PILLOW_LIMIT = threading.Lock()


class ImageReader(SlideReader):
    """A plain image, held in memory as RGB. EXIF orientation is ignored: coordinates are those of the stored pixels.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    UnreadableSlide
        If the image is damaged, too large, or not 8-bit grey or colour.
    """

    name = "image"

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._pixels, self.resolution = _decode(path)
        except (OSError, SyntaxError, ValueError) as error:
            raise UnreadableSlide(path.name, f"the image cannot be decoded: {error}") from error
        self.size = (self._pixels.shape[1], self._pixels.shape[0])

    def read_at(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        return self._pixels[top : top + height, left : left + width]

    @property
    def levels(self) -> list[tuple[int, int]]:
        return [self.size]

    def tile_size(self, level: int) -> None:
        return None

    @property
    def resident_bytes(self) -> int:
        return self._pixels.nbytes

    def close(self) -> None:
        self._pixels = np.zeros((0, 0, 3), np.uint8)


def probe(path: Path) -> str | None:
    """Recognise a plain image by its content.

    Parameters
    ----------
    path : Path
        A file.

    Returns
    -------
    str or None
        ``JPEG``, ``PNG`` or ``TIFF``; None for anything else, and for a TIFF that lacks a directory.
    """
    try:
        with _open(path) as image:
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                _ = image.n_frames  # walks every directory: a truncated slide lacks one
            return image.format
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, KeyError):
        return None


def _open(path: Path) -> Image.Image:
    # Pillow's own limit is a module-wide setting and lower than a section of a spot data set; ours is MAX_PIXELS,
    # checked on the header before a pixel is decoded.
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(path: Path) -> tuple[Pixels, Resolution | None]:
    with _open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}×{image.height} px is over {MAX_PIXELS} px; convert it to a tiled TIFF")
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
            raise ValueError(f"mode {image.mode} is not 8-bit grey or colour")
        resolution = _tiff_resolution(image)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), resolution


def _tiff_resolution(image: Image.Image) -> Resolution | None:
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None  # JPEG and PNG densities describe printing, not a scanner
    tags = image.tag_v2
    unit = _UM_PER_UNIT.get(tags.get(TiffImagePlugin.RESOLUTION_UNIT, 0))
    x, y = tags.get(TiffImagePlugin.X_RESOLUTION), tags.get(TiffImagePlugin.Y_RESOLUTION)
    if unit is None or not x or not y:
        return None
    return Resolution.from_tag(unit / float(x), unit / float(y), "tiff.resolution")
