"""A slide at 0.5 µm/px, padded with white, read in strips: no float copy of more than one strip ever exists."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from m2ost_preprocess.readers.base import Pixels

from .geometry import Plan
from .sizes import PATCH_PX
from .stopwatch import Stopwatch

WHITE_LEVEL = 255
STRIP_PX = 4096
"""Longest strip that is rescaled at once, in pixels of its row; strips are at most 256 px high."""


class PixelSource(Protocol):
    """What iStar needs of a slide: a :class:`~m2ost_preprocess.readers.SlideReader` has it."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of level 0 in pixels."""
        ...

    def read(self, left: int, top: int, width: int, height: int) -> Pixels:
        """Level-0 pixels of a rectangle inside the slide, uint8, shape (height, width, 3)."""
        ...


class ScaledSlide:
    """A slide rescaled by linear interpolation (order 1, pixel centres, no filter before), rounded to uint8.

    Parameters
    ----------
    source : PixelSource
        The slide.
    plan : Plan
        Its sizes.
    watch : Stopwatch
        Told of the stages ``read`` and ``rescale``.
    """

    def __init__(self, source: PixelSource, plan: Plan, watch: Stopwatch) -> None:
        self._source, self._plan, self._watch = source, plan, watch
        self._whole: Pixels | None = None

    def hold(self) -> None:
        """Rescale the whole slide once and keep it as uint8, for variants that look at every pixel many times."""
        width, height = self._plan.padded_px
        whole = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, PATCH_PX):
            for left in range(0, width, STRIP_PX):
                right = min(left + STRIP_PX, width)
                whole[top : top + PATCH_PX, left:right] = self.read(left, top, right - left, PATCH_PX)
        self._whole = whole

    def read(self, left: int, top: int, width: int, height: int) -> Pixels:
        """Pixels of a rectangle inside the padded slide.

        Parameters
        ----------
        left, top, width, height : int
            The rectangle in pixels at 0.5 µm/px.

        Returns
        -------
        ndarray of uint8, shape (height, width, 3)
            RGB; white beyond the slide's own right and lower border.

        Raises
        ------
        SlideError
            If the slide cannot be decoded there.
        """
        if self._whole is not None:
            return self._whole[top : top + height, left : left + width]
        out = np.full((height, width, 3), WHITE_LEVEL, np.uint8)
        wide, high = self._plan.scaled_px
        inside_x, inside_y = min(left + width, wide) - left, min(top + height, high) - top
        if inside_x <= 0 or inside_y <= 0:
            return out
        x0, x1, across = _taps(left, inside_x, self._source.size[0], wide)
        y0, y1, down = _taps(top, inside_y, self._source.size[1], high)
        with self._watch("read"):
            region = self._source.read(x0[0], y0[0], x1[-1] + 1 - x0[0], y1[-1] + 1 - y0[0])
        with self._watch("rescale"):
            out[:inside_y, :inside_x] = _interpolate(
                region, (y0 - y0[0], y1 - y0[0], down), (x0 - x0[0], x1 - x0[0], across)
            )
        return out


Taps = tuple[Any, Any, Any]


def _taps(first: int, count: int, source: int, target: int) -> Taps:
    """For each of ``count`` target pixels from ``first`` on: the two source pixels, and the weight of the second."""
    position = (np.arange(first, first + count) + 0.5) * (source / target) - 0.5
    floor = np.floor(position)
    low = np.clip(floor, 0, source - 1).astype(int)
    high = np.clip(floor + 1, 0, source - 1).astype(int)
    return low, high, (position - floor).astype(np.float32)


def _interpolate(region: Pixels, rows: Taps, columns: Taps) -> Pixels:
    y0, y1, down = rows
    x0, x1, across = columns
    if not down.any() and not across.any():
        kept: Pixels = region[y0[:, None], x0]
        return kept
    lines = region[y0] + down[:, None, None] * (region[y1].astype(np.float32) - region[y0])
    pixels = lines[:, x0] + across[:, None] * (lines[:, x1] - lines[:, x0])
    rounded: Pixels = np.rint(pixels).astype(np.uint8)
    return rounded
