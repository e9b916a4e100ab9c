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

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width, 3)
        They hold the windows whole.
    corners : ndarray of int, shape (n, 2)
        x, y of each window's first pixel.
    side : int
        Side of the windows in pixels.
    out : ndarray of uint8, shape (m, size_px, size_px, 3)
        Receives the windows: as they are where they have that size, else resized by Pillow's antialiased bilinear
        filter.
    rows : ndarray of int, shape (n,)
        Which rows of ``out`` receive them.
    """
    if side == out.shape[1]:
        yield partial(_copy, pixels, corners, side, out, rows)
        return
    for left in np.unique(corners[:, 0]).tolist():
        column = np.flatnonzero(corners[:, 0] == left)
        column = column[np.argsort(corners[column, 1], kind="stable")]
        for members in _overlapping(column, corners[:, 1], side):
            yield partial(_resize, pixels, left, corners[members, 1], side, out, np.asarray(rows)[members])


def _copy(pixels: Pixels, corners: Any, side: int, out: Pixels, rows: Any) -> None:
    for row, (left, top) in zip(rows, corners.tolist(), strict=True):
        out[row] = pixels[top : top + side, left : left + side]


def _resize(pixels: Pixels, left: int, tops: Any, side: int, out: Pixels, rows: Any) -> None:
    """Resize windows of one column that touch, from top to bottom."""
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
    factor, rest = divmod(side, size)
    phases = tops % factor if factor > 1 and rest == 0 else np.arange(len(tops))
    for phase in np.unique(phases).tolist():
        members = np.flatnonzero(phases == phase)
        first, last = int(tops[members[0]]), int(tops[members[-1]]) + side
        if last - first >= len(members) * side or len(members) == 1:
            for member in members:
                top = int(tops[member])
                window = strip.crop((0, top, size, top + side))
                out[rows[member]] = np.asarray(window.resize((size, size), Image.Resampling.BILINEAR))
            continue
        shrunk = strip.crop((0, first, size, last)).resize((size, (last - first) // factor), Image.Resampling.BILINEAR)
        shared, pixels, plan = np.asarray(shrunk), np.asarray(strip), taps(side, size)
        for member in members:
            inner = (int(tops[member]) - first) // factor
            out[rows[member], 1:-1] = shared[inner + 1 : inner + size - 1]
        for end in (0, -1):
            total = np.full((len(members), size, 3), 1 << (WEIGHT_BITS - 1), np.int32)
            for tap in np.flatnonzero(plan.weights[end]):
                # NumPy 1 would take the product of 8 bits and a small weight for one of 16.
                total += pixels[tops[members] + plan.first[end] + tap].astype(np.int32) * plan.weights[end, tap]
            out[rows[members], end] = total >> WEIGHT_BITS
