"""Spots of several sections as one training set: views mapped from disk, all else in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from m2ost_contract import PositionsError, SlideLevel
from m2ost_contract.slide_level import SLIDE
from torch import Tensor

from ..architecture import Architecture
from ..data.errors import DataError
from ..data.section import Section
from ..data.views import ViewCache, Views


@dataclass(frozen=True)
class SpotSet:
    """Spots in the order of their sections.

    Parameters
    ----------
    views : sequence of ndarray of uint8, each shape (n, views, size, size, 3)
        One a section.
    targets : ndarray of float32, shape (N, genes)
    places : ndarray of int64, shape (N, 2), or None
        x, y on the array, for networks that predict a slide as a whole.
    counts : ndarray of float32, shape (N, genes), or None
        Counts of the panel, for them.
    """

    views: Sequence[Views]
    targets: np.ndarray[Any, np.dtype[np.float32]]
    places: np.ndarray[Any, np.dtype[np.int64]] | None = None
    counts: np.ndarray[Any, np.dtype[np.float32]] | None = None

    def __len__(self) -> int:
        return sum(map(len, self.views))

    @property
    def starts(self) -> Any:
        """The first row of each section, and the number of rows: integers, shape (sections + 1,)."""
        return np.cumsum([0, *(len(v) for v in self.views)])

    def slides(self) -> list[Any]:
        """The rows of each section."""
        starts = self.starts
        return [np.arange(first, end) for first, end in pairwise(starts)]

    def batch(self, rows: Any) -> Tensor:
        """Views of some spots: uint8, shape (len(rows), views, size, size, 3)."""
        starts = self.starts
        section = np.searchsorted(starts, rows, side="right") - 1
        picked = [self.views[s][row - starts[s]] for row, s in zip(rows, section, strict=True)]
        return torch.from_numpy(np.stack(picked))

    def on_the_array(self, rows: Any) -> tuple[Tensor, ...]:
        """Places (len(rows), 2) and counts (len(rows), genes) of some spots; nothing where there are none."""
        return tuple(torch.from_numpy(part[rows]) for part in (self.places, self.counts) if part is not None)


def spot_set(
    sections: Sequence[Section],
    panel: Sequence[str],
    kind: str,
    model: Architecture,
    cache: ViewCache,
    view_mpp: float | None = None,
) -> SpotSet:
    """Spots of ``sections``; their views are cut where the cache lacks them, at ``view_mpp`` µm/px if given.

    Raises
    ------
    DataError
        If a gene is absent from a section, a spot has no target or no views, or the network predicts a slide as a whole
        and a section has no places on the array that it knows.
    """
    views = [cache.views(section, model.views, view_mpp) for section in sections]
    targets = np.concatenate([section.targets(panel, kind) for section in sections])
    if model.level != SLIDE:
        return SpotSet(views, targets)
    counts = np.concatenate([section.panel_counts(panel) for section in sections]).astype(np.float32)
    return SpotSet(views, targets, np.concatenate([known_places(section, model) for section in sections]), counts)


def known_places(section: Section, model: Architecture) -> np.ndarray[Any, np.dtype[np.int64]]:
    """x, y of a section's spots on the array, as a network that predicts a slide as a whole knows them: shape (n, 2).

    Raises
    ------
    DataError
        If there are none, or too many spots, or a place lies outside the network's table, or two are alike.
    """
    places = section.places()
    assert model.positions is not None
    assert model.max_spots is not None
    try:
        SlideLevel(1, model.positions["table"], model.max_spots).check(
            places, len(section), whose=f"section {section.name}"
        )
    except PositionsError as error:
        raise DataError(str(error)) from error
    return places.astype(np.int64)


def project(targets: Any, rank: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The targets' projection on their ``rank`` leading principal components; as they are for rank 0."""
    if rank == 0:
        return np.asarray(targets, np.float32)
    mean = targets.mean(axis=0)
    u, s, vt = np.linalg.svd(np.asarray(targets - mean, np.float64), full_matrices=False)
    return np.asarray(mean + (u[:, :rank] * s[:rank]) @ vt[:rank], np.float32)
