"""The interface of every slide reader."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .. import progress
from ..errors import UnreadableSlide, without_folders
from . import limits, native_errors
from .resolution import Resolution

TILED_TIFF = "'out.tif[tile,pyramid,compression=deflate]'"
"""What the commands that messages name write."""

STRIP_PIXELS = 1 << 25
"""Most pixels that an overview decodes at once."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

Size = tuple[int, int]
"""Width and height in pixels."""


class Segments(Protocol):
    """The compressed tiles of a file, which can be looked at without the library that reads it."""

    def check(self, size: Size, left: int, top: int, width: int, height: int) -> None:
        """Raise ``UnreadableSlide`` where a tile that a rectangle of a level of that size is decoded from is not whole.

        Names the first damaged tile, and what is wrong with it.
        """


def words_of(error: Exception, path: Path) -> str:
    """What a library's error says, without folders of this machine: it may go to whoever asked for the slide.

    Raises ``MemoryError`` where it says that memory ran out.
    """
    native_errors.raise_if_out_of_memory(str(error))
    return without_folders(str(error), path)


class SlideReader(ABC):
    """One open slide. Threads may read from it at once; one that fails may make others fail that read at that time.

    All that gives pixels raises ``UnreadableSlide`` where they cannot be decoded. Pixels are RGB.

    Attributes
    ----------
    name : str
        Which reader this is: ``cucim``, ``openslide`` or ``image``.
    path : Path
        The file.
    size : tuple of int
        Width and height of level 0 in pixels.
    resolution : Resolution or None
        µm/px of level 0, where the file carries it.
    vendor : str
        OpenSlide's name of the format (``aperio``, ``dicom`` …), or ``jpeg``, ``png``, ``tiff`` for plain images.
    reason : str
        Why this reader.
    notes : tuple of str
        What a user should know about this file: what was put right, and what contradicts itself in it.
    """

    name: str
    path: Path
    size: Size
    resolution: Resolution | None = None
    vendor: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()

    @abstractmethod
    def read_at(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        """Pixels of a rectangle that lies inside a level.

        Parameters
        ----------
        level : int
            Index into :attr:`levels`.
        left, top, width, height : int
            The rectangle in pixels of that level. Where a level does not start on a whole pixel of level 0, libraries
            differ by up to one pixel of the level.

        Returns
        -------
        ndarray of uint8, shape (height, width, 3)
        """

    def read(self, left: int, top: int, width: int, height: int) -> Pixels:
        """Level-0 pixels of a rectangle that lies inside the slide; see :meth:`read_at`."""
        return self.read_at(0, left, top, width, height)

    @property
    def failed_readers(self) -> tuple[str, ...]:
        """Names of readers that have failed on this file since it was opened, and are not asked again."""
        return ()

    @property
    def uncached(self) -> SlideReader:
        """The reader that decodes at every call: itself, unless it keeps what it decoded."""
        return self

    @abstractmethod
    def tile_size(self, level: int) -> tuple[int, int] | None:
        """Width and height of a level's compressed tiles in pixels; None where the whole image is decoded once."""

    @property
    def decodes_on_gpu(self) -> bool:
        """Whether :meth:`read_on_gpu` works on this file, given a GPU."""
        return False

    def read_on_gpu(self, left: int, top: int, width: int, height: int) -> Any:
        """The same as :meth:`read`, decoded on the current GPU and left there.

        Returns
        -------
        object with ``__cuda_array_interface__``, uint8, shape (height, width, 3 or more)
            RGB first. A decoder for GPUs may differ from the CPU's by a grey level.

        Raises
        ------
        UnreadableSlide
            Also where this reader has no decoder for GPUs.
        """
        raise UnreadableSlide(self.path.name, f"{self.name} has no decoder for GPUs")

    @property
    @abstractmethod
    def levels(self) -> list[tuple[int, int]]:
        """Width and height of every level of the file's pyramid in its pixels, level 0 first."""

    @property
    @abstractmethod
    def resident_bytes(self) -> int:
        """Bytes of memory that stay occupied while the slide is open."""

    @abstractmethod
    def close(self) -> None:
        """Release the file."""

    def read_needed(self, level: int, left: int, top: int, width: int, height: int, windows: Any) -> Pixels:
        """As :meth:`read_at`, but what lies in none of the windows need not be decoded, and may be black.

        ``windows``, shape (n, 3), are left, top and side of squares in pixels of the level.
        """
        return self.read_at(level, left, top, width, height)

    def read_padded(
        self, left: int, top: int, width: int, height: int, *, level: int = 0, windows: Any = None
    ) -> Pixels:
        """Pixels of any rectangle, black outside the slide.

        Parameters
        ----------
        left, top, width, height : int
            The rectangle in pixels of the level.
        level : int
            Index into :attr:`levels`.
        windows : ndarray of int, shape (n, 3), optional
            As of :meth:`read_needed`; by default all of the rectangle is needed.

        Returns
        -------
        ndarray of uint8, shape (height, width, 3)
        """
        size = self.levels[level]
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + width, size[0]), min(top + height, size[1])
        inside = level, x0, y0, x1 - x0, y1 - y0
        if x1 <= x0 or y1 <= y0:
            return np.zeros((height, width, 3), np.uint8)
        pixels = self.read_at(*inside) if windows is None else self.read_needed(*inside, windows)
        if pixels.shape[:2] == (height, width):
            return pixels
        out = np.zeros((height, width, 3), np.uint8)
        out[y0 - top : y1 - top, x0 - left : x1 - left] = pixels
        return out

    def thumbnail(self, max_px: int) -> Pixels:
        """The whole slide, made small.

        Parameters
        ----------
        max_px : int
            Most pixels of the longer side.

        Returns
        -------
        ndarray of uint8, shape (height, width, 3)
        """
        level = cheapest_level(self.levels, max_px)
        width, height = self.levels[level]
        if self.tile_size(level) is not None:
            self._check_overview(width * height)
        # First by a whole factor, block by block, and then the little that is left at once.
        factor = max(1, max(width, height) // max_px)
        # In blocks: a slide without a pyramid does not fit into memory whole. Squares share the fewest tiles.
        columns = min(-(-width // factor) * factor, max(factor, math.isqrt(STRIP_PIXELS) // factor * factor))
        rows = max(factor, STRIP_PIXELS // columns // factor * factor)

        def block(left: int, top: int) -> Pixels:
            pixels = self.read_at(level, left, top, min(columns, width - left), min(rows, height - top))
            progress.beat()
            return np.asarray(Image.fromarray(pixels).reduce(factor))

        strips = [
            np.concatenate([block(x, y) for x in range(0, width, columns)], axis=1) for y in range(0, height, rows)
        ]
        image = Image.fromarray(np.concatenate(strips))
        image.thumbnail((max_px, max_px), Image.Resampling.BOX)
        return np.asarray(image)

    def _check_overview(self, pixels: int) -> None:
        words = limits.implausible(pixels, self.path)
        if pixels > limits.MAX_OVERVIEW_PX:
            words = (
                f"its overview would be made of {pixels} px, over {limits.MAX_OVERVIEW_PX}: it lacks small levels; "
                f"convert it: vips copy '{self.path.name}' {TILED_TIFF}"
            )
        if words is not None:
            raise UnreadableSlide(self.path.name, words)


def cheapest_level(dimensions: list[tuple[int, int]], max_px: int) -> int:
    """The smallest level of those sizes whose longer side is at least ``max_px``; level 0 where none is."""
    fitting = [i for i, d in enumerate(dimensions) if max(d) >= max_px]
    return min(fitting, key=lambda i: max(dimensions[i]), default=0)
