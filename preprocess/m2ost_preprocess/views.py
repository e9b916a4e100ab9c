"""The nested views of spots, cut from regions that are decoded once for many spots.

A view is the square window of the spot on level 0, black outside the slide, resized to ``size_px`` by Pillow's bilinear
filter with antialias; a window of exactly ``size_px`` is taken as it is. Source: M2OST's published data sets; see
``m2ost_preprocess.contract.ViewGeometry`` for the windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .contract import SCALE_MAX, SCALE_MIN, RowStatus, ViewGeometry
from .errors import SlideError
from .readers.base import Pixels, SlideReader

REGION_PX = 2048
"""Side of the squares that spots are grouped by, in level-0 pixels: one region is read for each square."""

Centers = np.ndarray[Any, np.dtype[np.int32]]
Scales = np.ndarray[Any, np.dtype[np.float32]]
Statuses = np.ndarray[Any, np.dtype[np.int32]]


@dataclass
class TilingCounts:
    """What a tiler did, counted.

    Attributes
    ----------
    spots : int
        Spots whose views were cut.
    regions : int
        Regions read from slides.
    decoded_px : int
        Level-0 pixels inside those regions and inside the slide.
    """

    spots: int = 0
    regions: int = 0
    decoded_px: int = 0

    def __iadd__(self, other: TilingCounts) -> TilingCounts:
        self.spots += other.spots
        self.regions += other.regions
        self.decoded_px += other.decoded_px
        return self


def spatial_order(centers: Any) -> np.ndarray[Any, np.dtype[np.intp]]:
    """An order in which neighbouring spots follow each other: by square of ``REGION_PX``, squares row by row.

    Parameters
    ----------
    centers : array_like, shape (n, 2)
        x, y in level-0 pixels.

    Returns
    -------
    ndarray of intp, shape (n,)
        A permutation of the rows.
    """
    positions = np.asarray(centers).reshape(-1, 2)
    square = np.floor_divide(positions, REGION_PX)
    return np.lexsort((positions[:, 0], positions[:, 1], square[:, 0], square[:, 1]))


def row_statuses(size: tuple[int, int], centers: Centers, scales: Scales) -> Statuses:
    """Which rows can be cut from a slide.

    Parameters
    ----------
    size : (int, int)
        Width and height of the slide in level-0 pixels.
    centers : ndarray of int32, shape (n, 2)
        x, y in level-0 pixels.
    scales : ndarray of float32, shape (n,)
        Level-0 pixels per view pixel of the finest view.

    Returns
    -------
    ndarray of int32, shape (n,)
        ``RowStatus``: OK, OUTSIDE_SLIDE or BAD_SCALE.
    """
    statuses = np.full(len(centers), RowStatus.OK, np.int32)
    inside = (centers >= 0).all(axis=1) & (centers < np.asarray(size)).all(axis=1)
    statuses[~inside] = RowStatus.OUTSIDE_SLIDE
    with np.errstate(invalid="ignore"):
        statuses[~((scales >= SCALE_MIN) & (scales <= SCALE_MAX))] = RowStatus.BAD_SCALE
    return statuses


def cut_window(region: Image.Image, left: int, top: int, side: int, size_px: int) -> Pixels:
    """Cut a square window out of a decoded region and resize it with Pillow's antialiased bilinear filter.

    Parameters
    ----------
    region : Image
        RGB.
    left, top, side : int
        The window, in pixels of the region.
    size_px : int
        Side of the view.

    Returns
    -------
    ndarray of uint8, shape (size_px, size_px, 3)
    """
    window = region.crop((left, top, left + side, top + side))
    if side != size_px:
        window = window.resize((size_px, size_px), Image.Resampling.BILINEAR)
    return np.asarray(window)


@dataclass(frozen=True)
class Region:
    """A rectangle of level 0 that holds all windows of some spots of one scale.

    Parameters
    ----------
    rows : ndarray of int, shape (k,)
        The spots.
    left, top, width, height : int
        The rectangle in level-0 pixels; may reach outside the slide.
    """

    rows: Any
    left: int
    top: int
    width: int
    height: int


def for_each_region(
    reader: SlideReader,
    centers: Centers,
    scales: Scales,
    geometry: ViewGeometry,
    use: Callable[[Region], None],
    counts: TilingCounts,
) -> Statuses:
    """Group spots of one slide into regions, and have each region read and used.

    Parameters
    ----------
    reader : SlideReader
        The slide.
    centers : ndarray of int32, shape (n, 2)
        x, y: floor of the spot's centre in level-0 pixels. A centre outside the slide is a row without views.
    scales : ndarray of float32, shape (n,)
        Level-0 pixels per view pixel of the finest view.
    geometry : ViewGeometry
        The windows.
    use : callable
        Reads a region and takes from it what it needs. If it raises a ``SlideError``, it is called again with the
        region of each of the spots alone.
    counts : TilingCounts
        Added to.

    Returns
    -------
    ndarray of int32, shape (n,)
        A ``RowStatus`` a row. Damage costs exactly the spots whose own windows cannot be decoded.
    """
    statuses = row_statuses(reader.size, centers, scales)
    groups = list(_groups(centers, scales, np.flatnonzero(statuses == RowStatus.OK)))
    while groups:
        rows = groups.pop()
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
        counts.decoded_px += _area_inside(reader.size, region)
        counts.spots += len(rows)
    return statuses


def cut_views(
    reader: SlideReader,
    centers: Centers,
    scales: Scales,
    geometry: ViewGeometry,
    out: Sequence[Pixels],
    counts: TilingCounts | None = None,
) -> Statuses:
    """Cut the views of spots of one slide, with Pillow.

    ``m2ost_preprocess.resample`` gives the same values as array code. On a CPU that takes two to four times as long.

    Parameters
    ----------
    reader : SlideReader
        The slide.
    centers : ndarray of int32, shape (n, 2)
        x, y: floor of the spot's centre in level-0 pixels. A centre outside the slide is a row without views.
    scales : ndarray of float32, shape (n,)
        Level-0 pixels per view pixel of the finest view.
    geometry : ViewGeometry
        The windows.
    out : sequence of ndarray of uint8, each shape (n, size_px, size_px, 3)
        Receives one array a view, RGB; rows whose status is not OK become black.
    counts : TilingCounts, optional
        Added to.

    Returns
    -------
    ndarray of int32, shape (n,)
        A ``RowStatus`` a row; see :func:`for_each_region`.
    """

    def cut(region: Region) -> None:
        image = Image.fromarray(reader.read_padded(region.left, region.top, region.width, region.height))
        for row in region.rows:
            windows = geometry.windows((int(centers[row, 0]), int(centers[row, 1])), float(scales[row]))
            for view, (x, y, side) in enumerate(windows):
                out[view][row] = cut_window(image, x - region.left, y - region.top, side, geometry.size_px)

    statuses = for_each_region(reader, centers, scales, geometry, cut, TilingCounts() if counts is None else counts)
    for array in out:
        array[statuses != RowStatus.OK] = 0
    return statuses


def _region_around(rows: Any, centers: Centers, scales: Scales, geometry: ViewGeometry) -> Region:
    windows = [w for i in rows for w in geometry.windows((int(centers[i, 0]), int(centers[i, 1])), float(scales[i]))]
    left, top = min(x for x, _, _ in windows), min(y for _, y, _ in windows)
    right, bottom = max(x + side for x, _, side in windows), max(y + side for _, y, side in windows)
    return Region(rows, left, top, right - left, bottom - top)


def _groups(centers: Centers, scales: Scales, rows: Any) -> Iterator[Any]:
    """Rows that share a region: same square of ``REGION_PX`` and same scale."""
    if len(rows) == 0:
        return
    square = np.floor_divide(centers[rows], REGION_PX)
    keys = np.stack([square[:, 0], square[:, 1], scales[rows].view(np.int32)], axis=1)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    for index in range(int(group.max()) + 1):
        yield rows[group.reshape(-1) == index]


def _area_inside(size: tuple[int, int], region: Region) -> int:
    width = min(region.left + region.width, size[0]) - max(region.left, 0)
    height = min(region.top + region.height, size[1]) - max(region.top, 0)
    return max(width, 0) * max(height, 0)
