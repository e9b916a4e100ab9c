"""One view of many spots out of decoded pixels, with Pillow, sharing what neighbours have in common.

Pillow resizes the rows of a window first and rounds them to 8 bits, then the columns. So

- spots of one column of a grid share the first half: their windows begin and end at the same x, and a strip as tall as
  the column is resized across once;
- where the second half shrinks by a whole number, it weighs the rows inside a window alike for all windows whose tops
  differ by a multiple of that number: those share it too, but for each window's first and last row, where the filter
  leaves the window and is scaled up.

Both give what Pillow gives for each window alone, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from ..readers.base import Pixels
from .resample import WEIGHT_BITS, taps
from .threads import Part


def cut_windows(pixels: Pixels, corners: Any, side: int, out: Pixels, rows: Any) -> Iterator[Part]:
    """Cut square windows, one view of many spots, in parts: they may run in any order, on any threads.

    ``pixels``, (height, width, 3), hold the windows whole. ``corners``, int of shape (n, 2), are x, y of each window's
    first pixel; ``side`` is its side in pixels. ``rows``, int of shape (n,), of ``out``, (m, size_px, size_px, 3),
    receive them: as they are where they have that size, else resized by Pillow's antialiased bilinear filter.
    """
    if side == out.shape[1]:
        yield partial(_copy, pixels, corners, side, out, rows)
        return
    # Windows of one left edge share the resize across: a column of a grid is a single strip.
    for left in np.unique(corners[:, 0]).tolist():
        column = np.flatnonzero(corners[:, 0] == left)
        # From top to bottom, so that those that touch follow each other.
        column = column[np.argsort(corners[column, 1], kind="stable")]
        for members in _overlapping(column, corners[:, 1], side):
            yield partial(_resize, pixels, left, corners[members, 1], side, out, np.asarray(rows)[members])


def _copy(pixels: Pixels, corners: Any, side: int, out: Pixels, rows: Any) -> None:
    for row, (left, top) in zip(rows, corners.tolist(), strict=True):
        out[row] = pixels[top : top + side, left : left + side]


def _resize(pixels: Pixels, left: int, tops: Any, side: int, out: Pixels, rows: Any) -> None:
    """Resize windows of one column that touch, from top to bottom: across all at once, then down."""
    first, last = int(tops[0]), int(tops[-1]) + side
    strip = Image.fromarray(np.ascontiguousarray(pixels[first:last, left : left + side]))
    strip = strip.resize((out.shape[1], last - first), Image.Resampling.BILINEAR)
    _resize_down(strip, tops - first, side, out, rows)


def _overlapping(column: Any, tops: Any, side: int) -> list[Any]:
    """Members of a column, from top to bottom, in groups whose windows touch."""
    breaks = [i for i, (a, b) in enumerate(pairwise(column), start=1) if tops[b] - tops[a] >= side]
    return np.split(column, breaks)


def _resize_down(strip: Image.Image, tops: Any, side: int, out: Pixels, rows: Any) -> None:
    """Resize windows of a strip of their width, which has its final width already, to their final height."""
    size = out.shape[1]
    # Windows can share the resize down only where a whole number of rows makes one; tops of one phase, modulo that
    # number, then weigh the same rows alike. Else each window is a phase of its own.
    factor, rest = divmod(side, size)
    phases = tops % factor if factor > 1 and rest == 0 else np.arange(len(tops))
    for phase in np.unique(phases).tolist():
        members = np.flatnonzero(phases == phase)
        first, last = int(tops[members[0]]), int(tops[members[-1]]) + side
        # One alone, or so far apart that all rows between them are more than those of each window by itself.
        if last - first >= len(members) * side or len(members) == 1:
            for member in members:
                top = int(tops[member])
                window = strip.crop((0, top, size, top + side))
                out[rows[member]] = np.asarray(window.resize((size, size), Image.Resampling.BILINEAR))
            continue
        # All windows of this phase by one resize. Rows at a window's ends are replaced below: there the filter reached
        # beyond the window, into pixels that a resize of the window alone does not see.
        shrunk = strip.crop((0, first, size, last)).resize((size, (last - first) // factor), Image.Resampling.BILINEAR)
        shared, pixels, plan = np.asarray(shrunk), np.asarray(strip), taps(side, size)
        for member in members:
            inner = (int(tops[member]) - first) // factor
            out[rows[member], 1:-1] = shared[inner + 1 : inner + size - 1]
        # The first and last row of each window, by the weights of a window that ends there: as Pillow rounds, half a
        # unit is added before the fractional bits are dropped.
        for end in (0, -1):
            total = np.full((len(members), size, 3), 1 << (WEIGHT_BITS - 1), np.int32)
            for tap in np.flatnonzero(plan.weights[end]):
                # NumPy 1 would take the product of 8 bits and a small weight for one of 16.
                total += pixels[tops[members] + plan.first[end] + tap].astype(np.int32) * plan.weights[end, tap]
            out[rows[members], end] = total >> WEIGHT_BITS
