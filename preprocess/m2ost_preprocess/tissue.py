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
