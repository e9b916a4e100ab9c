"""Plain JPEG, PNG and TIFF images, decoded whole: the form in which spot data sets publish their slides."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from ..errors import UnreadableSlide
from . import native_errors
from .base import STRIP_PIXELS, TILED_TIFF, Pixels, Size, SlideReader, words_of
from .limits import MAX_IMAGE_PX, implausible
from .sound import jpeg_damage
from .tiff import TiffLayout

_FORMATS = ("JPEG", "PNG", "TIFF")
_MODES = ("L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_PILLOW_LIMIT = threading.Lock()
_PNG_DEPTH = slice(24, 25)
_ORIENTATION = 274
_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What undoes the turn that Pillow gives a TIFF for its orientation."""


class ImageReader(SlideReader):
    """A plain image, held in memory as RGB. Coordinates are those of the stored pixels, whatever the orientation says.

    ``layout`` are its directories, where it is a TIFF. Raises ``UnreadableSlide`` where the image is damaged, too
    large, or not 8-bit grey or colour.
    """

    name = "image"

    def __init__(self, path: Path, layout: TiffLayout | None = None) -> None:
        self.path = path
        began = native_errors.mark()
        try:
            self._pixels, self._orientation = _decode(path, layout)
        except (OSError, SyntaxError, ValueError) as error:
            words = words_of(error, path)
            if layout is not None and layout.main.has_missing:
                words += " (parts of it were left out of the file, which Pillow fills in raw TIFFs alone)"
            raise UnreadableSlide(path.name, f"the image cannot be decoded: {words}") from error
        complaint = native_errors.complaint(began)
        if complaint is not None:
            raise UnreadableSlide(path.name, f"the image cannot be decoded: {complaint}")
        self.size = (self._pixels.shape[1], self._pixels.shape[0])

    def read_at(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        return self._pixels[top : top + height, left : left + width]

    @property
    def orientation(self) -> int:
        """EXIF's number of how a viewer would turn it; 1 where it would not."""
        return self._orientation

    @property
    def levels(self) -> list[Size]:
        return [self.size]

    def tile_size(self, level: int) -> None:
        return None

    @property
    def resident_bytes(self) -> int:
        return self._pixels.nbytes

    def close(self) -> None:
        self._pixels = np.zeros((0, 0, 3), np.uint8)


def probe(path: Path) -> str | None:
    """What plain image a file is, told by its content: ``JPEG``, ``PNG`` or ``TIFF``; None for anything else."""
    try:
        with _open(path) as image:
            return image.format
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, KeyError):
        return None


def _open(path: Path) -> Image.Image:
    # Pillow's own limit is a module-wide setting and lower than a section of a spot data set; ours is MAX_IMAGE_PX,
    # checked on the header before a pixel is decoded.
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(path: Path, layout: TiffLayout | None) -> tuple[Pixels, int]:
    with _open(path) as image:
        if isinstance(image, TiffImagePlugin.TiffImageFile) and layout is not None:
            # The largest image is the slide, be it the first or not.
            image.seek(layout.main.index)
        area = image.width * image.height
        if area > MAX_IMAGE_PX:
            raise ValueError(
                f"{image.width}×{image.height} px, decoded whole, are over {MAX_IMAGE_PX}; convert it to a tiled TIFF: "
                f"vips copy '{path.name}' {TILED_TIFF}"
            )
        words = implausible(area, path)
        if words is not None:
            raise ValueError(words)
        _check_whole(path, layout)
        if image.mode not in _MODES:
            raise ValueError(
                f"mode {image.mode} is not 8-bit grey or colour; convert it: vips copy FILE out.tif --uchar"
            )
        orientation = int(image.getexif().get(_ORIENTATION, 1))
        image.load()
        stored: Image.Image = image
        if isinstance(image, TiffImagePlugin.TiffImageFile) and orientation in _UNDO:
            stored = image.transpose(_UNDO[orientation])
        pixels = _rgb(stored)
    return (pixels if layout is None else layout.paint_missing(pixels, layout.main.size, 0, 0)), orientation


def _check_whole(path: Path, layout: TiffLayout | None) -> None:
    """Raise where an image is damaged: Pillow fills up what it lacks, and skips the checksums of PNG's pixels."""
    if layout is not None:
        layout.check(layout.main.size, 0, 0, *layout.main.size)
    with _open(path) as image:
        if isinstance(image, PngImagePlugin.PngImageFile):
            with path.open("rb") as stream:
                depth = stream.read(_PNG_DEPTH.stop)[_PNG_DEPTH][0]
            if depth > 8:
                raise ValueError(
                    f"samples of {depth} bits, and how they are to be made 8 is for you to say: vips linear "
                    f"'{path.name}' out.png SCALE 0 --uchar (SCALE 0.00389 for 16 bits, 0.0625 for 12 bits kept in 16)"
                )
            image.verify()
        elif image.format in ("JPEG", "MPO"):
            damage = jpeg_damage(path.read_bytes(), MAX_IMAGE_PX)
            if damage is not None:
                raise ValueError(f"damaged: {damage}; fetch it anew")


def _rgb(image: Image.Image) -> Pixels:
    """Pixels of an image, strip by strip: each step of the conversion makes a copy."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(_on_white(strip))
    return pixels


def _on_white(image: Image.Image) -> Image.Image:
    """As RGB, on white where it is transparent."""
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, (255, 255, 255, 255)), layers).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
