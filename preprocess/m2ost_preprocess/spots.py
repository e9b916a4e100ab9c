"""Spot centres: a grid over the tissue, or read from a file."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from .errors import SpotError
from .spot_files import Centers, read_positions
from .tissue import Mask


@dataclass(frozen=True)
class Spots:
    """Spots of one slide.

    Parameters
    ----------
    centers : ndarray of float64, shape (n, 2)
        x, y in level-0 pixels.
    names : tuple of str
        One a spot, unique.
    pitch_px : float
        Distance between neighbours in level-0 pixels: for a grid its pitch, else the median distance to the nearest
        other spot (0 for fewer than two).
    source : str
        Where the spots come from, in words.
    """

    centers: Centers
    names: tuple[str, ...]
    pitch_px: float
    source: str

    def __len__(self) -> int:
        return len(self.names)


def grid(size: tuple[int, int], mask: Mask, pitch_px: float) -> Spots:
    """A square grid over the tissue.

    Parameters
    ----------
    size : (int, int)
        Width and height of the slide in level-0 pixels.
    mask : ndarray of bool, shape (h, w)
        Tissue, on an overview of the whole slide.
    pitch_px : float
        Distance between spots in level-0 pixels.

    Returns
    -------
    Spots
        The centres of those cells, ``pitch_px`` wide, of which at least half is tissue; row by row. Named
        ``{column}x{row}``.

    Raises
    ------
    SpotError
        If the pitch is not a positive number, or so small that the grid has over 10 million cells.
    """
    if not math.isfinite(pitch_px) or pitch_px <= 0:
        raise SpotError(f"the pitch must be a positive number of pixels, not {pitch_px}")
    width, height = size
    columns, rows = math.ceil(width / pitch_px), math.ceil(height / pitch_px)
    if columns * rows > 10_000_000:
        raise SpotError(f"a pitch of {pitch_px:g} px gives {columns * rows:,} cells; choose a larger pitch")
    share = _cell_tissue(mask, columns * pitch_px / width, rows * pitch_px / height, columns, rows)
    row, column = np.nonzero(share >= 0.5)
    centers = (np.stack([column, row], axis=1) + 0.5) * pitch_px
    inside = (centers[:, 0] < width) & (centers[:, 1] < height)
    names = tuple(f"{c}x{r}" for c, r in zip(column[inside], row[inside], strict=True))
    return Spots(np.asarray(centers[inside], np.float64), names, pitch_px, "grid")


def _cell_tissue(mask: Mask, span_x: float, span_y: float, columns: int, rows: int) -> np.ndarray[Any, Any]:
    """Share of tissue in every cell: shape (rows, columns). The grid spans ``span`` times the mask's sides."""
    height, width = mask.shape
    table = np.zeros((height + 1, width + 1))
    table[1:, 1:] = mask.cumsum(0, dtype=np.float64).cumsum(1)
    x = np.clip(np.round(np.arange(columns + 1) * width * span_x / columns), 0, width).astype(int)
    y = np.clip(np.round(np.arange(rows + 1) * height * span_y / rows), 0, height).astype(int)
    # A cell smaller than a mask pixel still looks at one.
    x0, y0 = np.minimum(x[:-1], width - 1), np.minimum(y[:-1], height - 1)
    x1, y1 = np.maximum(x[1:], x0 + 1), np.maximum(y[1:], y0 + 1)
    total = table[np.ix_(y1, x1)] - table[np.ix_(y0, x1)] - table[np.ix_(y1, x0)] + table[np.ix_(y0, x0)]
    share: np.ndarray[Any, Any] = total / np.outer(y1 - y0, x1 - x0)
    return share


def read_spots(path: Path) -> Spots:
    """Read spots from a file; see :mod:`m2ost_preprocess.spot_files` for the forms.

    Parameters
    ----------
    path : Path
        A table, also gzipped, or ``.h5ad``.

    Returns
    -------
    Spots

    Raises
    ------
    SpotError
        If the file cannot be read, holds no positions, a coordinate is not a finite number (names the line), or two
        spots share a name.
    """
    centers, names = read_positions(path)
    if len(set(names)) < len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise SpotError(f"{path}: spot {twice!r} appears twice; names must be unique")
    return Spots(centers, names, median_pitch_px(centers), f"file {path.name}")


def median_pitch_px(centers: Centers) -> float:
    """Median distance of a spot to its nearest neighbour.

    Parameters
    ----------
    centers : ndarray of float64, shape (n, 2)
        x, y in pixels.

    Returns
    -------
    float
        Pixels; 0 for fewer than two spots.
    """
    if len(centers) < 2:
        return 0.0
    distances, _ = cKDTree(centers).query(centers, k=2)
    return float(np.median(distances[:, 1]))
