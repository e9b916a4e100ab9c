"""Pillow's antialiased bilinear resize of 8-bit images as array code, for NumPy and CuPy alike.

Every function takes the array module first (``numpy`` or ``cupy``) and works on many windows at once. All arithmetic is
on integers, so that both modules give the same values: those of ``PIL.Image.resize(..., BILINEAR)``, bit for bit.

The definition, of one axis: output pixel o of a window of ``side`` pixels made ``size`` has its centre at
(o + ½)·side/size and weighs the pixels around it by a triangle whose half width is the larger of 1 and side/size; what
the window does not hold is left out and the rest scaled up to a sum of 1. Weights are rounded to 22 fractional bits.
First the rows are resized and rounded to 8 bits, then the columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from m2ost_contract import ViewGeometry

WEIGHT_BITS = 22
"""Fractional bits of a weight: 8 bits of pixel, 22 of weight and the sum of the weights' rounding fit into int32."""

GATHER_BYTES = 64 << 20
"""Most memory of the windows that are resized at once, one at least; the sums on the way take a few times that."""


@dataclass(frozen=True)
class Taps:
    """Which pixels of an axis make each output pixel."""

    first: np.ndarray[Any, np.dtype[np.int64]]  # shape (size,): the first pixel of each output pixel
    # Shape (size, taps): what the pixels from there on weigh, in units of 2⁻²²; 0 behind the last.
    weights: np.ndarray[Any, np.dtype[np.int32]]
    regular: slice  # output pixels that all have the same weights; empty where there are none
    step: int  # pixels from one regular output pixel to the next


@lru_cache(maxsize=64)
def taps(side: int, size: int) -> Taps:
    """The taps of one axis: ``side`` pixels of the window made ``size``."""
    scale = side / size
    # Half the triangle's width, in pixels of the window.
    support = max(scale, 1.0)
    center = (np.arange(size) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support + 0.5).astype(np.int64), side)
    position = first[:, None] + np.arange(int((end - first).max()))
    triangle = np.maximum(1.0 - np.abs((position - center[:, None] + 0.5) * (1.0 / support)), 0.0)
    triangle[position >= end[:, None]] = 0.0
    # Summed from left to right, as a loop would: another order rounds differently.
    triangle /= np.cumsum(triangle, axis=1)[:, -1:]
    weights = (triangle * (1 << WEIGHT_BITS) + 0.5).astype(np.int32)
    # At a whole factor all but the ends, which the window's edge cuts, repeat the same weights.
    regular = slice(1, size - 1) if side % size == 0 and side > size > 2 else slice(0, 0)
    return Taps(first, weights, regular, side // size)


def resize(xp: ModuleType, windows: Any, size_px: int) -> Any:
    """Resize square windows as Pillow does with its antialiased bilinear filter.

    Parameters
    ----------
    xp : module
        ``numpy`` or ``cupy``.
    windows : array of uint8, shape (n, side, side, channels)
        An array of that module, with any strides.
    size_px : int
        Side of the result.

    Returns
    -------
    array of uint8, shape (n, size_px, size_px, channels)
        C-contiguous; a copy even where the windows have that size already.
    """
    if windows.shape[1] == size_px:
        return windows.copy(order="C")
    return _filter(xp, _filter(xp, windows, size_px, 2), size_px, 1)


def _filter(xp: ModuleType, x: Any, size: int, axis: int) -> Any:
    """Resize one axis, 1 or 2, of (n, height, width, channels)."""
    plan = taps(x.shape[axis], size)
    out = xp.empty((*x.shape[:axis], size, *x.shape[axis + 1 :]), np.uint8)
    # What is left to gather tap by tap once the regular pixels are made by slices.
    rest = np.arange(size)
    if plan.regular != slice(0, 0):
        out[_along(axis, plan.regular)] = _regular(x, plan, axis)
        rest = np.delete(rest, plan.regular)
    if len(rest) == 0:
        return out
    # Half a unit, so that the shift below rounds, as Pillow does.
    total: Any = 1 << (WEIGHT_BITS - 1)
    for tap in range(plan.weights.shape[1]):
        # Taps behind the last weigh 0, and may point anywhere inside.
        at = np.minimum(plan.first[rest] + tap, x.shape[axis] - 1)
        weight = xp.asarray(plan.weights[rest, tap]).reshape([-1 if i == axis else 1 for i in range(4)])
        total = total + xp.take(x, xp.asarray(at), axis=axis) * weight
    rounded = (total >> WEIGHT_BITS).astype(np.uint8)
    if len(rest) == size:
        return rounded
    for i, position in enumerate(rest):
        out[_along(axis, int(position))] = rounded[_along(axis, i)]
    return out


def _regular(x: Any, plan: Taps, axis: int) -> Any:
    """The output pixels that share their weights, from strided views: nothing is gathered.

    Weights of a power of two have few fractional bits (3 at 2×, 5 at 4×), and then 16-bit sums hold them exactly.
    """
    # Fractional bits that are 0 in all weights are left out of the sums, which stay exact.
    weights = plan.weights[plan.regular.start]
    spare = min(_trailing_zeros(int(w)) for w in weights if w)
    bits = WEIGHT_BITS - spare
    dtype = np.uint16 if bits <= 8 and int(weights.sum()) == 1 << WEIGHT_BITS else np.int32
    count = plan.regular.stop - plan.regular.start
    first = int(plan.first[plan.regular.start])
    total: Any = None
    for tap, weight in enumerate(weights):
        if weight == 0:
            continue
        start = first + tap
        pixels = x[_along(axis, slice(start, start + (count - 1) * plan.step + 1, plan.step))].astype(dtype)
        pixels *= dtype(int(weight) >> spare)
        if total is None:
            total = pixels
        else:
            total += pixels
    total += dtype(1 << (bits - 1))
    total >>= dtype(bits)
    return total


def _along(axis: int, index: int | slice) -> tuple[int | slice, ...]:
    return (*[slice(None)] * axis, index)


def _trailing_zeros(value: int) -> int:
    return (value & -value).bit_length() - 1


def cut_spots(
    xp: ModuleType,
    region: Any,
    origin: tuple[int, int],
    centers: Any,
    scale: float,
    geometry: ViewGeometry,
    out: Sequence[Any],
    rows: Any,
) -> None:
    """Cut the views of spots out of one decoded region.

    Parameters
    ----------
    xp : module
        ``numpy`` or ``cupy``.
    region : array of uint8, shape (height, width, 3)
        Level-0 pixels that hold all windows of the spots, black outside the slide; an array of that module.
    origin : (int, int)
        x, y of the region's first pixel on level 0.
    centers : ndarray of int32, shape (n, 2)
        x, y of the spots in level-0 pixels; a NumPy array.
    scale : float
        Level-0 pixels per view pixel of the finest view.
    geometry : ViewGeometry
        The views.
    out : sequence of arrays of uint8, each shape (m, size_px, size_px, 3)
        Receives one array a view; arrays of that module.
    rows : ndarray of int, shape (n,)
        Which rows of ``out`` receive the spots' views; a NumPy array.
    """
    sides = [geometry.window_px(view, scale) for view in range(geometry.n_views)]
    widest = sides[-1]
    # First pixels of the widest windows, in pixels of the region.
    corners = np.asarray(centers, np.int64) - np.asarray(origin) - widest // 2
    at_once = max(1, GATHER_BYTES // (3 * widest * widest))
    for begin in range(0, len(corners), at_once):
        chunk = corners[begin : begin + at_once]
        # The windows of a spot are nested: the widest is copied once a spot, the others are views of it.
        windows = xp.empty((len(chunk), widest, widest, 3), np.uint8)
        for i, (left, top) in enumerate(chunk.tolist()):
            windows[i] = region[top : top + widest, left : left + widest]
        target = xp.asarray(rows[begin : begin + at_once])
        for array, side in zip(out, sides, strict=True):
            # Every window of a spot begins half its side, rounded down, before the centre.
            inset = widest // 2 - side // 2
            array[target] = resize(xp, windows[:, inset : inset + side, inset : inset + side], geometry.size_px)
