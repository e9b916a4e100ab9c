"""Views that were cut last, for another network that asks for those of the same spots."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from m2ost_contract import ENV_VIEW_CACHE_MIB, RowStatus

from ..readers.base import Pixels
from .views import Centers, Scales, Statuses

Rows = np.ndarray[Any, np.dtype[np.intp]]


class KeptViews:
    """Views by slide, spot and scale, the first to be used longest ago out; at most ``capacity_bytes`` of them."""

    def __init__(self, capacity_bytes: int = 0) -> None:
        self.capacity_bytes = capacity_bytes
        self._views: OrderedDict[tuple[Hashable, ...], tuple[Pixels, ...]] = OrderedDict()
        self._nbytes = 0

    @classmethod
    def from_environment(cls) -> KeptViews:
        """As ``M2OST_VIEW_CACHE_MIB`` says; none are kept where it is not set."""
        given = os.environ.get(ENV_VIEW_CACHE_MIB, "0")
        if not given.isdecimal():
            raise ValueError(f"{ENV_VIEW_CACHE_MIB} must be a whole number of MiB, not {given!r}")
        return cls(int(given) << 20)

    @property
    def nbytes(self) -> int:
        """Bytes of the views that are kept."""
        return self._nbytes

    def fill(self, how: Hashable, centers: Centers, scales: Scales, out: Sequence[Pixels]) -> Rows:
        """Copy what is kept into ``out``, each shape (n, size_px, size_px, 3); the rows of it that are missing.

        ``how`` is the slide, as its files stand, and all else that a spot's views depend on.
        """
        if not self._views:
            return np.arange(len(centers))
        missing = []
        for row, key in enumerate(_keys(how, centers, scales)):
            views = self._views.get(key)
            if views is None:
                missing.append(row)
                continue
            self._views.move_to_end(key)
            for array, view in zip(out, views, strict=True):
                array[row] = view
        return np.array(missing, np.intp)

    def keep(self, how: Hashable, centers: Centers, scales: Scales, out: Sequence[Pixels], statuses: Statuses) -> None:
        """Keep copies of the views in ``out`` whose status is OK."""
        if not self.capacity_bytes:
            return
        for row, key in enumerate(_keys(how, centers, scales)):
            if statuses[row] != RowStatus.OK or key in self._views:
                continue
            self._views[key] = tuple(array[row].copy() for array in out)
            self._nbytes += _nbytes(self._views[key])
        while self._nbytes > self.capacity_bytes:
            self._nbytes -= _nbytes(self._views.popitem(last=False)[1])

    def clear(self) -> None:
        """Keep none any more."""
        self._views.clear()
        self._nbytes = 0


def _keys(how: Hashable, centers: Centers, scales: Scales) -> list[tuple[Hashable, ...]]:
    spots = zip(centers.tolist(), scales.view(np.int32).tolist(), strict=True)
    return [(how, x, y, scale) for (x, y), scale in spots]


def _nbytes(views: Sequence[Pixels]) -> int:
    return sum(view.nbytes for view in views)
