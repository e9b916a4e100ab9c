"""The nested views of spots, cut from regions that are decoded once for many spots.

A view is the square window of the spot on level 0, black outside the slide, resized to ``size_px`` by Pillow's bilinear
filter with antialias; a window of exactly ``size_px`` is taken as it is. Source: M2OST's published data sets; see
``m2ost_contract.ViewGeometry`` for the windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from m2ost_contract import SCALE_MAX, SCALE_MIN, RowStatus, ViewGeometry

from .. import progress
from ..errors import SlideError
from ..readers.base import Pixels, SlideReader
from .cutting import cut_windows
from .threads import Helpers
from .tiles import TilingCounts

REGION_PX = 2048
"""Side of the squares that spots are grouped by, in level-0 pixels: a region is put together for each, or a few are."""

ORDERED_BYTES = 384 << 20
"""Bytes of decoded tiles that the order of spots keeps in use."""

SLACK_PX = 512
"""What whole tiles add to a window, in level-0 pixels."""

LEVEL_TOLERANCE = 0.01
"""How much coarser than a view a pyramid level may be and still serve it."""

Centers = np.ndarray[Any, np.dtype[np.int32]]
Scales = np.ndarray[Any, np.dtype[np.float32]]
Statuses = np.ndarray[Any, np.dtype[np.int32]]


def spatial_order(centers: Any, *, window_px: int = 896) -> np.ndarray[Any, np.dtype[np.intp]]:
    """An order in which neighbouring spots follow each other, and tiles are needed again while they are still kept.

    By squares of ``REGION_PX``, column by column inside each; squares row by row inside a stripe from the slide's top
    to its bottom, as wide as ``ORDERED_BYTES`` allows; stripes from left to right.

    Parameters
    ----------
    centers : array_like, shape (n, 2)
        x, y in level-0 pixels.
    window_px : int
        Side of the coarsest view's window in level-0 pixels.

    Returns
    -------
    ndarray of intp, shape (n,)
        A permutation of the rows.
    """
    positions = np.asarray(centers).reshape(-1, 2)
    square = np.floor_divide(positions, REGION_PX)
    width_px = ORDERED_BYTES // (3 * (REGION_PX + window_px + SLACK_PX)) - window_px
    stripe = square[:, 0] // max(width_px // REGION_PX, 1)
    return np.lexsort((positions[:, 1], positions[:, 0], square[:, 0], square[:, 1], stripe))


def row_statuses(size: tuple[int, int], centers: Centers, scales: Scales) -> Statuses:
    """Which rows can be cut from a slide of that size: OK, OUTSIDE_SLIDE or BAD_SCALE, int32 of shape (n,).

    ``centers`` and ``scales`` are as of :func:`cut_views`.
    """
    statuses = np.full(len(centers), RowStatus.OK, np.int32)
    inside = (centers >= 0).all(axis=1) & (centers < np.asarray(size)).all(axis=1)
    statuses[~inside] = RowStatus.OUTSIDE_SLIDE
    # A scale that is no number compares as false both times, and is bad like one out of range.
    with np.errstate(invalid="ignore"):
        statuses[~((scales >= SCALE_MIN) & (scales <= SCALE_MAX))] = RowStatus.BAD_SCALE
    return statuses


@dataclass(frozen=True)
class Region:
    """A rectangle of level 0, in its pixels, that holds all windows of some spots of one scale."""

    rows: Any  # the spots, shape (k,)
    left: int  # may lie outside the slide, as may the other edges
    top: int
    width: int
    height: int
    windows: Any  # left, top and side of each spot's coarsest window, shape (k, 3): what is needed of the rectangle


def for_each_region(
    reader: SlideReader,
    centers: Centers,
    scales: Scales,
    geometry: ViewGeometry,
    use: Callable[[Region], None],
    counts: TilingCounts,
    unwanted: Pixels | None = None,
) -> Statuses:
    """Group spots of one slide into regions, and have each region read and used.

    ``centers``, ``scales``, ``geometry``, ``counts`` and the statuses are as of :func:`cut_views`. Damage costs exactly
    the spots whose own windows cannot be decoded: where ``use`` raises a ``SlideError`` it is called again with the
    region of each of the spots alone.

    ``unwanted``, uint8 of shape (m,) with m at least n, is not 0 in rows that nobody waits for any more. It is looked
    at before each region: such rows are left out, and get the status of a row whose slide is not available.
    """
    statuses = row_statuses(reader.size, centers, scales)
    groups = list(_groups(centers, scales, np.flatnonzero(statuses == RowStatus.OK)))
    while groups:
        rows = groups.pop()
        progress.beat()
        if unwanted is not None:
            given_up = unwanted[rows] != 0
            statuses[rows[given_up]] = RowStatus.SLIDE_UNAVAILABLE
            rows = rows[~given_up]
            if len(rows) == 0:
                continue
        region = _region_around(rows, centers, scales, geometry)
        try:
            use(region)
        except SlideError:
            # A row's value must not depend on its company: rows that failed together are tried alone.
            if len(rows) > 1:
                groups.extend(rows.reshape(-1, 1))
            else:
                statuses[rows] = RowStatus.DECODE_FAILED
            continue
        counts.regions += 1
        counts.spots += len(rows)
        counts.needed_px += _inside_px(region.windows, reader.size)
    return statuses


def cut_views(
    reader: SlideReader,
    centers: Centers,
    scales: Scales,
    geometry: ViewGeometry,
    out: Sequence[Pixels],
    counts: TilingCounts | None = None,
    *,
    pyramid: bool = False,
    helpers: Helpers | None = None,
    unwanted: Pixels | None = None,
) -> Statuses:
    """Cut the views of spots of one slide, with Pillow.

    ``m2ost_preprocess.tiling.resample`` gives the same values as array code. On a CPU that takes two to four times
    as long.

    Parameters
    ----------
    reader : SlideReader
        The slide. Tiles are decoded once where it is a ``CachedReader``.
    centers : ndarray of int32, shape (n, 2)
        x, y: floor of the spot's centre in level-0 pixels. A centre outside the slide is a row without views.
    scales : ndarray of float32, shape (n,)
        Level-0 pixels per view pixel of the finest view.
    geometry : ViewGeometry
        The windows.
    out : sequence of ndarray of uint8, each shape (n, size_px, size_px, 3)
        Receives one array a view, RGB; rows whose status is not OK become black.
    counts : TilingCounts, optional
        Added to: spots, regions and bytes of views here; a ``CachedReader`` counts tiles.
    pyramid : bool
        Cut coarse views from the slide's own lower levels where one fits: less to decode, but other values than the
        definition's.
    helpers : Helpers, optional
        Cut one region while the next is read. By default the thread that reads cuts too, in turn; so it does where a
        window is larger than ``REGION_PX``.
    unwanted : ndarray of uint8, shape (m,), optional
        See :func:`for_each_region`.

    Returns
    -------
    ndarray of int32, shape (n,)
        A ``RowStatus`` a row; see :func:`for_each_region`.
    """
    counts = TilingCounts() if counts is None else counts
    if helpers is None or _largest_window(scales, geometry) > REGION_PX:
        helpers = Helpers()  # windows of that size would fill a gigabyte, several at a time

    def cut(region: Region) -> None:
        rows, scale = region.rows, float(scales[region.rows[0]])
        # Views by the level that they are cut from: all from level 0, unless lower ones may serve.
        by_level: dict[int, list[int]] = {}
        for view in range(geometry.n_views):
            level = fitting_level(reader, geometry.window_px(view, scale) / geometry.size_px) if pyramid else 0
            by_level.setdefault(level, []).append(view)
        for level, views in by_level.items():
            windows = [_windows_at(reader, level, centers[rows], geometry.window_px(view, scale)) for view in views]
            # The box around all windows on this level; only what lies in a window is decoded of it.
            origin = np.min([corners.min(axis=0) for corners, _ in windows], axis=0)
            end = np.max([corners.max(axis=0) + side for corners, side in windows], axis=0)
            needed = np.concatenate([np.insert(corners, 2, side, axis=1) for corners, side in windows])
            box = *origin.tolist(), *(end - origin).tolist()
            # Parts are made while it counts as reading, and run as cutting: each keeps ``pixels`` alive.
            with helpers.spans.span("read"):
                pixels = reader.read_padded(*box, level=level, windows=needed)
                parts = [
                    part
                    for view, (corners, side) in zip(views, windows, strict=True)
                    for part in cut_windows(pixels, corners - origin, side, out[view], rows)
                ]
            helpers.cut(parts)

    try:
        statuses = for_each_region(reader, centers, scales, geometry, cut, counts, unwanted)
    finally:
        helpers.finish()
    # ``out`` may hold anything where a row was not cut, or only begun.
    for array in out:
        array[statuses != RowStatus.OK] = 0
    counts.moved_bytes += int(np.count_nonzero(statuses == RowStatus.OK)) * sum(array[:1].nbytes for array in out)
    return statuses


def fitting_level(reader: SlideReader, ratio: float) -> int:
    """The coarsest level of at most ``ratio`` level-0 pixels a pixel, give or take a hundredth; 0 where no lower is."""
    fitting = [0]
    for level, (width, height) in enumerate(reader.levels):
        if max(reader.size[0] / width, reader.size[1] / height) <= ratio * (1 + LEVEL_TOLERANCE):
            fitting.append(level)
    return max(fitting, key=lambda level: -reader.levels[level][0])


def _windows_at(reader: SlideReader, level: int, centers: Centers, side: int) -> tuple[Any, int]:
    """First pixels, (n, 2), and side of windows around spots, in pixels of a level."""
    corners = centers.astype(np.int64) - side // 2
    if level == 0:
        return corners, side
    shrink = np.asarray(reader.size) / np.asarray(reader.levels[level])
    return np.rint(corners / shrink).astype(np.int64), max(1, round(side / float(shrink.mean())))


def _largest_window(scales: Scales, geometry: ViewGeometry) -> int:
    # Bad scales are in it too, and are never cut: they are brought into the range that may be.
    largest = float(np.nan_to_num(scales).clip(SCALE_MIN, SCALE_MAX).max(initial=SCALE_MIN))
    return geometry.window_px(geometry.n_views - 1, largest)


def _region_around(rows: Any, centers: Centers, scales: Scales, geometry: ViewGeometry) -> Region:
    coarsest = [geometry.windows((int(centers[i, 0]), int(centers[i, 1])), float(scales[i]))[-1] for i in rows]
    windows = np.array(coarsest)
    left, top = windows[:, :2].min(axis=0).tolist()
    right, bottom = (windows[:, :2] + windows[:, 2:]).max(axis=0).tolist()
    return Region(rows, left, top, right - left, bottom - top, windows)


def _inside_px(windows: Any, size: tuple[int, int]) -> int:
    """Pixels of windows, left, top and side, shape (k, 3), that lie in a slide of that size."""
    corners = windows[:, :2]
    sides = np.minimum(corners + windows[:, 2:], size) - np.maximum(corners, 0)
    return int(np.prod(sides.clip(0), axis=1).sum())


def _groups(centers: Centers, scales: Scales, rows: Any) -> Iterator[Any]:
    """Rows that share a region: same square of ``REGION_PX`` and same scale."""
    if len(rows) == 0:
        return
    square = np.floor_divide(centers[rows], REGION_PX)
    # By the scale's bits: only spots of one scale have windows of the same sides.
    keys = np.stack([square[:, 0], square[:, 1], scales[rows].view(np.int32)], axis=1)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    for index in range(int(group.max()) + 1):
        yield rows[group.reshape(-1) == index]
