"""Where the tissue is."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.filters import threshold_otsu
from skimage.morphology import closing, disk, opening

from .readers.base import Pixels

MASK_PX = 1024
"""Longer side of the overview that tissue is sought on, in pixels."""

MIN_SATURATION = 0.06
"""Least HSV saturation of stained tissue; glass lies below, and a blank slide has no pixel above."""

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def tissue_mask(overview: Pixels) -> Mask:
    """Mark stained tissue on an overview of a slide.

    Otsu's threshold on HSV saturation, but never below ``MIN_SATURATION``; specks are removed and gaps up to
    ten pixels wide closed. A blank slide gives an empty mask.

    Parameters
    ----------
    overview : ndarray of uint8, shape (h, w, 3)
        RGB.

    Returns
    -------
    ndarray of bool, shape (h, w)
    """
    rgb = overview.astype(np.float32)
    high, low = rgb.max(axis=2), rgb.min(axis=2)
    saturation = np.divide(high - low, high, out=np.zeros_like(high), where=high > 0)
    # A pixel darker than any stain is a pen, a fold's shadow or the black border of a scan.
    saturation[high < 30] = 0
    threshold = float(threshold_otsu(saturation)) if np.ptp(saturation) > 0 else 1.0
    mask = saturation > max(threshold, MIN_SATURATION)
    cleaned: Mask = closing(opening(mask, disk(1)), disk(5)).astype(bool)
    return cleaned


def cell_tissue(mask: Mask, span_x: float, span_y: float, columns: int, rows: int) -> np.ndarray[Any, Any]:
    """Share of tissue in every cell of a grid.

    Parameters
    ----------
    mask : ndarray of bool, shape (h, w)
        Tissue, on an overview of the whole slide.
    span_x, span_y : float
        Sides of the grid, in sides of the slide; over 1 where its last cells reach beyond.
    columns, rows : int
        Cells along each side.

    Returns
    -------
    ndarray of float64, shape (rows, columns)
    """
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
