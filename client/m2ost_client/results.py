"""A slide's result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import EngineInfo, RowStatus
from m2ost_preprocess.decoder import SlideInfo
from m2ost_preprocess.slides.spots import Spots

from .answers import Expression, Statuses

Writer = Callable[[Path], Any]
"""Writes one file, or one folder, at the path it is given."""

DEFAULT_SPOT_UM = 100.0
"""Diameter at which a lone spot is drawn, in µm, where no pitch tells."""


@dataclass(frozen=True)
class SlideResult:
    """The expression map of one slide.

    Parameters
    ----------
    name : str
        Stem of the result's files.
    slide : SlideInfo
        The slide.
    engine : EngineInfo
        What predicted it.
    spots : Spots
        Where.
    expression : ndarray of float32, shape (n, G)
        NaN in rows without a value.
    status : ndarray of int32, shape (n,)
        ``RowStatus`` values.
    """

    name: str
    slide: SlideInfo
    engine: EngineInfo
    spots: Spots
    expression: Expression
    status: Statuses

    @property
    def spot_diameter_px(self) -> float:
        """Side of a spot's mark in level-0 pixels: the pitch, so that a grid covers its tissue without gaps."""
        if self.spots.pitch_px > 0:
            return self.spots.pitch_px
        return DEFAULT_SPOT_UM / self.slide.mpp if self.slide.mpp else float(self.engine.views.size_px)

    @property
    def title(self) -> str:
        """One line for figures; says so where the network is untrained."""
        return self.name if self.engine.trained else f"{self.name} · UNTRAINED network"

    def counts_by_status(self) -> dict[str, int]:
        """Spots by status name, those that occur."""
        values, counts = np.unique(self.status, return_counts=True)
        return {status_name(v): int(c) for v, c in zip(values, counts, strict=True)}


def status_name(status: int) -> str:
    """Name of a row's status; ``status N`` for one that only a newer server knows."""
    known = status in RowStatus.__members__.values()
    return RowStatus(status).name if known else f"status {status}"
