"""Places of spots on an array, which slide-level networks are given beside the views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Places = np.ndarray[Any, np.dtype[np.int32]]
"""x, y on the array, shape (n, 2)."""

ARRAY_COLUMNS = (("array_x", "array_y"), ("array_col", "array_row"))
"""Columns of x and y on the array: of any table, and of Visium."""

_LEGACY, _LEGACY_PIXELS = ("x", "y"), ("pixel_x", "pixel_y")
"""In a selection of legacy ST, x and y are places on the array."""

IN_WORDS = (
    "places on the array as whole numbers: columns array_x and array_y, Visium's array_col and array_row, or x and y "
    "beside pixel_x and pixel_y"
)
"""What a file of spots must hold for a slide-level network."""


def find_array(header: Sequence[str]) -> tuple[str, str] | None:
    """The columns of x and y on the array; None where there are none."""
    found = next((pair for pair in ARRAY_COLUMNS if set(pair) <= set(header)), None)
    return _LEGACY if found is None and {*_LEGACY, *_LEGACY_PIXELS} <= set(header) else found


def read_array(x: Any, y: Any) -> Places | None:
    """Places from two columns; None where a value is no whole number, as only some networks need them."""
    try:
        values = np.stack([np.asarray(column, np.float64) for column in (x, y)], axis=1)
    except (TypeError, ValueError):
        return None
    # A comparison with NaN is false.
    whole = (values == np.floor(values)).all() and (np.abs(values) < 2**31).all()
    return values.astype(np.int32) if whole else None
