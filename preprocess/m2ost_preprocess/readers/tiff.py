"""What the directories of a TIFF say: which image is the slide, how it is stored, and which of its tiles are there."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from ..errors import UnreadableSlide
from .base import TILED_TIFF, Pixels, Size, words_of
from .companions import TIFF_MAGICS
from .limits import MAX_IMAGE_PX, MAX_TILE_BYTES, MAX_TILES
from .sound import APERIO_JP2K_RGB, APERIO_JP2K_YCBCR, DECODABLE, JPEG, damage

_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _IMAGE_DESCRIPTION = 274, 282, 283, 296, 270
_COLOURS = (0, 1, 2, 3, 5, 6)  # grey from white, grey from black, RGB, palette, CMYK, YCbCr
_YCBCR, _YCBCR_BY = 6, (JPEG, APERIO_JP2K_YCBCR, APERIO_JP2K_RGB)
MAX_IMAGES = 4096
"""Most images of a file."""

_LISTED_BYTES = 6  # the least that a tile's offset and count take
_UNSCANNED = 255
"""What a tile shows that the scanner left out: white."""


@dataclass(frozen=True)
class Directory:
    """One image of a TIFF. What has no comment is TIFF's own number or tag of that name."""

    index: int  # its place among the file's images
    size: Size
    segment: Size  # width and height of its tiles in pixels, or of its strips
    tiled: bool  # whether they are tiles
    subfile_type: int
    compression: int
    photometric: int
    predictor: int
    planar: int
    orientation: int
    samples: int  # a pixel
    bits: frozenset[int]  # of the samples
    whole_numbers: bool  # whether samples are unsigned whole numbers
    # Where each tile or strip lies, and its bytes: shape (segments,). With planes of their own, all of one plane come
    # first.
    offsets: np.ndarray[Any, np.dtype[np.int64]] = field(repr=False)
    counts: np.ndarray[Any, np.dtype[np.int64]] = field(repr=False)
    tables: bytes | None = field(repr=False)  # JPEGTables
    description: str = field(repr=False)
    resolution: tuple[float, float, int] | None  # X and Y in pixels a unit, and ResolutionUnit

    @property
    def area(self) -> int:
        """Pixels."""
        return self.size[0] * self.size[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of its tiles or strips."""
        return -(-self.size[0] // self.segment[0]), -(-self.size[1] // self.segment[1])

    @property
    def planes(self) -> int:
        """How many segments lie over each other."""
        return self.samples if self.planar == 2 else 1

    def segments(self, left: int, top: int, width: int, height: int) -> Iterator[tuple[int, int, int]]:
        """Tiles or strips that a rectangle of the image touches: column, row and number, plane by plane."""
        columns, rows = self.grid
        for row in range(top // self.segment[1], min(rows, -(-(top + height) // self.segment[1]))):
            for column in range(left // self.segment[0], min(columns, -(-(left + width) // self.segment[0]))):
                for plane in range(self.planes):
                    yield column, row, (plane * rows + row) * columns + column

    def decoded_bytes(self, row: int) -> int:
        """Bytes of a tile or strip of a row of the grid, once decoded."""
        # Tiles are whole also at the edge, the last strip is not; bits of a row fill whole bytes.
        height = self.segment[1] if self.tiled else min(self.segment[1], self.size[1] - row * self.segment[1])
        samples = 1 if self.planes > 1 else self.samples
        return -(-self.segment[0] * max(self.bits) * samples // 8) * height

    def too_large(self) -> str | None:
        """What of it is larger than anybody should decode or list."""
        columns, rows = self.grid
        if columns * rows * self.planes > MAX_TILES:
            return f"{columns}×{rows} tiles or strips of an image are over {MAX_TILES}"
        if self.tiled and self.decoded_bytes(0) > MAX_TILE_BYTES:
            return f"tiles of {self.segment[0]}×{self.segment[1]} px are over {MAX_TILE_BYTES >> 20} MiB each"
        return None

    @cached_property
    def has_missing(self) -> bool:
        """Whether any tile or strip was left out of the file; asked at every read, and looked for once."""
        columns, rows = self.grid
        return len(self.counts) < columns * rows * self.planes or not (self.counts.all() and self.offsets.all())

    def is_missing(self, number: int) -> bool:
        """Whether a tile or strip was left out of the file."""
        return number >= len(self.counts) or self.counts[number] == 0 or self.offsets[number] == 0


class TiffLayout:
    """The images of a TIFF, and which of them is the slide: the largest that is no mask.

    Raises ``UnreadableSlide`` where its directories cannot be followed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._verdicts: dict[tuple[int, int], str | None] = {}
        problems: list[str] = []
        found: list[Directory] = []
        try:
            with _errors_of_tifffile(problems), tifffile.TiffFile(path) as file:
                found = list(_directories(file))
        except MemoryError:
            raise
        except Exception as error:  # tifffile passes on whatever a damaged tag leads to
            problems.append(words_of(error, path))
        if problems:
            raise UnreadableSlide(
                path.name, f"its TIFF directories cannot be read ({problems[0]}): truncated or damaged; fetch it anew"
            )
        self.images = [image for image in found if not image.subfile_type & _MASK]
        if not self.images:
            raise UnreadableSlide(path.name, "a TIFF without an image, perhaps truncated; fetch it anew")
        self.main = max(self.images, key=lambda image: image.area)

    def refusal(self) -> str | None:
        """Why nobody should take it for a slide, and what to do; None for one largest image in colours of 8 bits."""
        main, name = self.main, self.path.name
        # What could exhaust memory comes first: nothing of such a file may be decoded.
        too_large = next(filter(None, (image.too_large() for image in self.images)), None)
        if too_large is None and not main.tiled and main.area > MAX_IMAGE_PX:
            too_large = f"{main.size[0]}×{main.size[1]} px without tiles are over {MAX_IMAGE_PX} px"
        if too_large is not None:
            return f"{too_large}; convert it: vips copy '{name}' {TILED_TIFF}"
        same = [image for image in self.images if image.size == main.size and not image.subfile_type & _REDUCED]
        if len(same) > 1:
            what = (
                "one colour or focal plane each"
                if main.samples == 1
                else "focal planes, time points or several slides in one file"
            )
            return (
                f"holds {len(same)} images of {main.size[0]}×{main.size[1]} px ({what}) and which is the slide cannot "
                f"be told; write one RGB image, for example: vips bandjoin \"'{name}[page=0]' '{name}[page=1]' "
                f"'{name}[page=2]'\" out.tif for colour planes, or vips copy '{name}[page=0]' out.tif for one of them"
            )
        if main.bits != {8} or not main.whole_numbers:
            shown = "/".join(map(str, sorted(main.bits))) + ("" if main.whole_numbers else " signed or floating")
            return (
                f"samples of {shown} bits, and how they are to be made 8 is for you to say: vips linear '{name}' "
                f"{TILED_TIFF} SCALE 0 --uchar (SCALE 0.00389 for 16 bits, 0.0625 for 12 bits kept in 16)"
            )
        if main.compression not in DECODABLE:
            return f"nobody reads TIFF's compression {main.compression}; convert it: vips copy '{name}' {TILED_TIFF}"
        if main.photometric not in _COLOURS or (main.photometric == _YCBCR and main.compression not in _YCBCR_BY):
            return f"colours of TIFF's kind {main.photometric}; convert it: vips colourspace '{name}' {TILED_TIFF} srgb"
        return None

    def image_of(self, size: Size) -> Directory | None:
        """The image that a reader's level of this size is; None where there is none such."""
        same = [image for image in self.images if image.size == size]
        # Of a macro image of the same size as a level, the level is the tiled one.
        return max(same, key=lambda image: image.tiled, default=None)

    def check(self, size: Size, left: int, top: int, width: int, height: int) -> None:
        """See :class:`~.base.Segments`."""
        image = self.image_of(size)
        if image is None:
            return
        for column, row, number in image.segments(left, top, width, height):
            # Each tile is looked at once, however often it is read.
            key = image.index, number
            if key not in self._verdicts:
                self._verdicts[key] = None if image.is_missing(number) else self._damage(image, row, number)
            if self._verdicts[key] is not None:
                x, y = column * image.segment[0], row * image.segment[1]
                raise UnreadableSlide(
                    self.path.name, f"damaged at x {x}, y {y} of {size[0]}×{size[1]} px: {self._verdicts[key]}"
                )

    def paint_missing(self, pixels: Pixels, size: Size, left: int, top: int) -> Pixels:
        """Make white what the file leaves out of a rectangle, (height, width, 3), of a level of that size.

        ``left`` and ``top`` are its first pixel. Gives ``pixels``, or a copy where anything had to be painted.
        """
        image = self.image_of(size)
        if image is None or not image.has_missing:
            return pixels
        pixels = pixels.copy()
        (height, width), (tile_width, tile_height) = pixels.shape[:2], image.segment
        for column, row, number in image.segments(left, top, width, height):
            if image.is_missing(number):
                # The tile's place in the rectangle, which it may begin outside of.
                y, x = row * tile_height - top, column * tile_width - left
                pixels[max(y, 0) : max(y + tile_height, 0), max(x, 0) : max(x + tile_width, 0)] = _UNSCANNED
        return pixels

    def _damage(self, image: Directory, row: int, number: int) -> str | None:
        offset, count = int(image.offsets[number]), int(image.counts[number])
        file = os.open(self.path, os.O_RDONLY)
        try:
            if offset + count > os.fstat(file).st_size:
                return "the file ends before it"
            data = os.pread(file, count, offset)
        finally:
            os.close(file)
        return damage(data, image.compression, image.decoded_bytes(row), image.tables)


def read_layout(path: Path) -> TiffLayout | None:
    """The layout of a file; None where it is no TIFF, ``UnreadableSlide`` where its directories cannot be followed."""
    with path.open("rb") as stream:
        if stream.read(4) not in TIFF_MAGICS:
            return None
    return TiffLayout(path)


@contextlib.contextmanager
def _errors_of_tifffile(told: list[str]) -> Iterator[None]:
    """Hear what tifffile logs where it goes on without a part of the file."""
    logger, handler = logging.getLogger("tifffile"), logging.Handler(logging.ERROR)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _directories(file: tifffile.TiffFile) -> Iterator[Directory]:
    """The images of a file; raises where they list more than it holds, as directories that share their lists do."""
    if len(file.pages) > MAX_IMAGES:
        raise ValueError(f"{len(file.pages)} images, over {MAX_IMAGES}")
    # Lists, descriptions and tables of all images must fit into the file together.
    left = int(file.filehandle.size)
    for index, page in enumerate(file.pages):
        if not isinstance(page, tifffile.TiffPage) or not (page.imagewidth and page.imagelength):
            continue
        left -= _LISTED_BYTES * len(page.dataoffsets) + len(page.description or "") + len(page.jpegtables or b"")
        if left < 0:
            raise ValueError("its images list more tiles than the file has room for")
        yield _directory(index, page)


def _directory(index: int, page: tifffile.TiffPage) -> Directory:
    # One number, or one for each sample.
    bits = page.bitspersample
    resolution = None
    if _X_RESOLUTION in page.tags and _Y_RESOLUTION in page.tags:
        across, down = (_ratio(page.tags[tag].value) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
        unit = page.tags[_RESOLUTION_UNIT].value if _RESOLUTION_UNIT in page.tags else 2
        resolution = (across, down, int(unit))
    width, height = int(page.imagewidth), int(page.imagelength)
    strip = int(page.rowsperstrip or height)
    return Directory(
        index=index,
        size=(width, height),
        segment=(int(page.tilewidth), int(page.tilelength)) if page.is_tiled else (width, min(strip, height)),
        tiled=bool(page.is_tiled),
        subfile_type=int(page.subfiletype),
        compression=int(page.compression),
        photometric=int(page.photometric) if page.photometric is not None else -1,
        predictor=int(page.predictor),
        planar=int(page.planarconfig or 1),
        orientation=int(page.tags[_ORIENTATION].value) if _ORIENTATION in page.tags else 1,
        samples=int(page.samplesperpixel),
        bits=frozenset(bits if isinstance(bits, tuple) else (int(bits),)),
        whole_numbers=int(page.sampleformat or 1) == 1,
        offsets=np.asarray(page.dataoffsets, np.int64),
        counts=np.asarray(page.databytecounts, np.int64),
        tables=page.jpegtables,
        description=str(page.description or ""),
        resolution=resolution,
    )


def _ratio(value: Any) -> float:
    numerator, denominator = value if isinstance(value, tuple) else (value, 1)
    return float(numerator) / float(denominator) if denominator else 0.0
