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


class TissueShares:
    """The share of tissue in any cells of a slide.

    Parameters
    ----------
    mask : ndarray of bool, shape (h, w)
        Tissue, on an overview of the whole slide.
    """

    def __init__(self, mask: Mask) -> None:
        self._height, self._width = mask.shape
        # Sums wrap around, and their differences do not: 4 bytes a pixel do for a mask of any size that fits.
        self._table = np.zeros((self._height + 1, self._width + 1), np.uint32)
        inner = self._table[1:, 1:]
        np.cumsum(mask, 1, np.uint32, inner)
        np.cumsum(inner, 0, np.uint32, inner)

    def between(self, x: Any, y: Any) -> np.ndarray[Any, Any]:
        """Share of tissue in the cells of a grid.

        Parameters
        ----------
        x, y : array_like of float, shapes (columns + 1,) and (rows + 1,)
            Edges of the cells, in sides of the slide; may reach beyond 1.

        Returns
        -------
        ndarray of float64, shape (rows, columns)
        """
        x = np.clip(np.round(np.asarray(x) * self._width), 0, self._width).astype(int)
        y = np.clip(np.round(np.asarray(y) * self._height), 0, self._height).astype(int)
        # A cell smaller than a mask pixel still looks at one.
        x0, y0 = np.minimum(x[:-1], self._width - 1), np.minimum(y[:-1], self._height - 1)
        x1, y1 = np.maximum(x[1:], x0 + 1), np.maximum(y[1:], y0 + 1)
        table = self._table
        total = table[np.ix_(y1, x1)] - table[np.ix_(y0, x1)] - table[np.ix_(y1, x0)] + table[np.ix_(y0, x0)]
        share: np.ndarray[Any, Any] = total / np.outer(y1 - y0, x1 - x0)
        return share


def cell_tissue(mask: Mask, span_x: float, span_y: float, columns: int, rows: int) -> np.ndarray[Any, Any]:
    """Share of tissue in every cell of a grid from a slide's first pixel on.

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
    return TissueShares(mask).between(np.arange(columns + 1) * span_x / columns, np.arange(rows + 1) * span_y / rows)
