"""Spots of several sections as one training set: views mapped from disk, targets in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from m2ost_contract import ViewGeometry
from torch import Tensor

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
    """

    views: Sequence[Views]
    targets: np.ndarray[Any, np.dtype[np.float32]]

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: Any) -> Tensor:
        """Views of some spots: uint8, shape (len(rows), views, size, size, 3)."""
        starts = np.cumsum([0, *(len(v) for v in self.views)])
        section = np.searchsorted(starts, rows, side="right") - 1
        picked = [self.views[s][row - starts[s]] for row, s in zip(rows, section, strict=True)]
        return torch.from_numpy(np.stack(picked))


def spot_set(
    sections: Sequence[Section],
    panel: Sequence[str],
    kind: str,
    geometry: ViewGeometry,
    cache: ViewCache,
    view_mpp: float | None = None,
) -> SpotSet:
    """Spots of ``sections``; their views are cut where the cache lacks them, at ``view_mpp`` µm/px if given.

    Raises
    ------
    DataError
        If a gene is absent from a section, or a spot has no target or no views.
    """
    return SpotSet(
        [cache.views(section, geometry, view_mpp) for section in sections],
        np.concatenate([section.targets(panel, kind) for section in sections]),
    )


def project(targets: Any, rank: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The targets' projection on their ``rank`` leading principal components; as they are for rank 0."""
    if rank == 0:
        return np.asarray(targets, np.float32)
    mean = targets.mean(axis=0)
    u, s, vt = np.linalg.svd(np.asarray(targets - mean, np.float64), full_matrices=False)
    return np.asarray(mean + (u[:, :rank] * s[:rank]) @ vt[:rank], np.float32)
