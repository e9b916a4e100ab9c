"""A slide that cuCIM reads until it fails on it once, and OpenSlide from then on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import UnreadableSlide
from .base import Pixels, Size, SlideReader


class CuCimFirst(SlideReader):
    """Reads by cuCIM as long as that never fails.

    What cuCIM cannot decode may be damaged or only beyond it: OpenSlide is asked, which gives the same pixels. A failed
    read of cuCIM's frees none of its memory, so cuCIM is not asked again about this file. ``open_other`` opens the file
    by OpenSlide, with the same levels; it raises ``UnreadableSlide`` where it cannot.
    """

    def __init__(self, cucim: SlideReader, open_other: Callable[[], SlideReader]) -> None:
        self._cucim, self._open_other = cucim, open_other
        self._other: SlideReader | None = None
        self._opening = threading.Lock()
        self.name, self.path, self.size = cucim.name, cucim.path, cucim.size

    @property
    def failed_readers(self) -> tuple[str, ...]:
        """See :attr:`SlideReader.failed_readers`."""
        return () if self._other is None else (self._cucim.name,)

    def read_at(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        if self._other is None:
            try:
                return self._cucim.read_at(level, left, top, width, height)
            except UnreadableSlide as error:
                self._go_on_with_other(error)
        assert self._other is not None
        return self._other.read_at(level, left, top, width, height)

    def _go_on_with_other(self, error: UnreadableSlide) -> None:
        with self._opening:
            if self._other is None:
                self._other = self._open_other()
                self.name, self.reason = self._other.name, f"{self.reason}, until {error.message}"

    @property
    def decodes_on_gpu(self) -> bool:
        return self._other is None and self._cucim.decodes_on_gpu

    def tile_size(self, level: int) -> Size | None:
        return self._cucim.tile_size(level)

    def read_on_gpu(self, left: int, top: int, width: int, height: int) -> Any:
        return self._cucim.read_on_gpu(left, top, width, height)

    @property
    def levels(self) -> list[Size]:
        return self._cucim.levels

    @property
    def resident_bytes(self) -> int:
        return self._cucim.resident_bytes

    def close(self) -> None:
        self._cucim.close()
        if self._other is not None:
            self._other.close()


def check_agreement(cucim: SlideReader, other: SlideReader) -> None:
    """Raise ``UnreadableSlide`` where two readers differ in levels or the tile in the middle, or cannot decode it."""
    name = cucim.path.name
    if cucim.levels != other.levels:
        raise UnreadableSlide(name, f"cuCIM finds levels of {cucim.levels} px, OpenSlide of {other.levels}")
    side = cucim.tile_size(0) or cucim.size
    left, top = (full // 2 // tile * tile for full, tile in zip(cucim.size, side, strict=True))
    width, height = (min(tile, full - at) for full, tile, at in zip(cucim.size, side, (left, top), strict=True))
    # OpenSlide's reader looks whether the tile is whole: of one that claims too much cuCIM's decoder ends the process.
    expected, found = (reader.read(left, top, width, height).astype(np.int16) for reader in (other, cucim))
    difference = int(np.abs(found - expected).max())
    if difference:
        raise UnreadableSlide(name, f"cuCIM's pixels differ from OpenSlide's by up to {difference} grey levels")
