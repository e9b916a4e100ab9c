"""Which superpixels a spot is made of, and their mean."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from m2ost_contract import RowStatus
from m2ost_preprocess.errors import SpotError
from scipy.sparse import csr_array

from .geometry import MPP, scaled_size
from .sizes import SUPERPIXEL_PX

Indices = np.ndarray[Any, np.dtype[np.int64]]
Statuses = np.ndarray[Any, np.dtype[np.int32]]
Expression = np.ndarray[Any, np.dtype[np.float32]]

MAX_DIAMETER_UM = 1000.0
"""Largest spot: 12,272 superpixels."""

MAX_PAIRS = 1 << 26
"""Most superpixels of all spots together, each counted once a spot: 1 GiB."""


@dataclass(frozen=True)
class Disks:
    """The superpixels of many spots.

    Parameters
    ----------
    statuses : ndarray of int32, shape (n,)
        A ``RowStatus`` a spot: OK, or OUTSIDE_SLIDE for one that has no superpixel.
    spots : ndarray of int64, shape (m,)
        The spot of every pair of spot and superpixel.
    superpixels : ndarray of int64, shape (m,)
        Its superpixel: row · columns of the grid + column.
    """

    statuses: Statuses
    spots: Indices
    superpixels: Indices

    @property
    def counts(self) -> Indices:
        """Superpixels of each spot."""
        return np.bincount(self.spots, minlength=len(self.statuses))

    @cached_property
    def distinct(self) -> Indices:
        """Every superpixel that is in at least one spot, in ascending order."""
        return np.unique(self.superpixels)


def disks(size_px: tuple[int, int], mpp: float, grid: tuple[int, int], centers: Any, diameter_um: float) -> Disks:
    """Find the superpixels whose centre lies in a spot's disk; a spot that holds none takes the one it lies in.

    Parameters
    ----------
    size_px : (int, int)
        Width and height of the slide in level-0 pixels.
    mpp : float
        µm per level-0 pixel.
    grid : (int, int)
        Rows and columns of superpixels of the padded slide.
    centers : ndarray of int32, shape (n, 2)
        x, y in level-0 pixels.
    diameter_um : float
        Diameter of a spot in µm.

    Raises
    ------
    SpotError
        If the diameter is not a positive number of µm or implausibly large, or the spots are too many for it.
    """
    if not 0 < diameter_um <= MAX_DIAMETER_UM:
        raise SpotError(
            f"a spot's diameter must lie in 0 to {MAX_DIAMETER_UM:g} µm, not {diameter_um:g}; it is that of the assay, "
            "such as 100 (Spatial Transcriptomics) or 55 (Visium)"
        )
    inside = (centers >= 0).all(axis=1) & (centers < np.asarray(size_px)).all(axis=1)
    statuses = np.where(inside, RowStatus.OK, RowStatus.OUTSIDE_SLIDE).astype(np.int32)
    scale = np.asarray(scaled_size(size_px, mpp)) / np.asarray(size_px)
    radius = diameter_um / MPP / 2 / SUPERPIXEL_PX
    if len(centers) * np.pi * radius**2 > MAX_PAIRS:
        raise SpotError(
            f"{len(centers)} spots of {diameter_um:g} µm are too many superpixels for one request; split it"
        )
    spots, superpixels = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for spot in np.flatnonzero(inside):
        x, y = centers[spot] * scale / SUPERPIXEL_PX
        rows = np.arange(max(0, int(y - radius)), min(grid[0], int(y + radius) + 1))
        columns = np.arange(max(0, int(x - radius)), min(grid[1], int(x + radius) + 1))
        near = (rows[:, None] + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= radius**2
        within = (rows[:, None] * grid[1] + columns)[near]
        if not len(within):
            within = np.array([min(int(y), grid[0] - 1) * grid[1] + min(int(x), grid[1] - 1)])
        spots.append(np.full(len(within), spot))
        superpixels.append(within)
    return Disks(statuses, np.concatenate(spots), np.concatenate(superpixels))


class SpotMeans:
    """Means over the superpixels of spots, which come in blocks.

    Parameters
    ----------
    spots : Disks
    n_genes : int
    """

    def __init__(self, spots: Disks, n_genes: int) -> None:
        self._superpixels, self._spots = spots.superpixels, spots.spots
        self._counts, self._statuses = spots.counts, spots.statuses
        self._sums = np.zeros((len(spots.statuses), n_genes))

    def add(self, superpixels: Any, expression: Expression) -> None:
        """Take in the expression of some superpixels, in ascending order; every one comes once."""
        place = np.searchsorted(superpixels, self._superpixels)
        place[place == len(superpixels)] = 0
        here = np.flatnonzero(superpixels[place] == self._superpixels)
        spots, row = np.unique(self._spots[here], return_inverse=True)
        members = csr_array((np.ones(len(here)), (row, place[here])), shape=(len(spots), len(superpixels)))
        self._sums[spots] += members @ expression

    def expression(self) -> Expression:
        """The means, float32 (n, G); NaN for spots without a value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (self._sums / self._counts[:, None]).astype(np.float32)
        means[self._statuses != RowStatus.OK] = np.nan
        return means
