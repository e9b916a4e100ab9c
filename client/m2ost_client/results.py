"""A slide's result, and its table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
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


def to_anndata(result: SlideResult, metadata: dict[str, Any]) -> anndata.AnnData:
    """A result as AnnData: spots × genes.

    ``obsm["spatial"]`` is in level-0 pixels; ``uns["spatial"]`` carries the thumbnail as scanpy and squidpy read it;
    ``uns["m2ost"]`` carries ``metadata``.
    """
    obs = pd.DataFrame(
        {"status": [status_name(s) for s in result.status]},
        index=pd.Index(result.spots.names, dtype=str),
    )
    obs["status"] = obs["status"].astype("category")
    var = pd.DataFrame(index=pd.Index(result.engine.genes, dtype=str))
    adata = anndata.AnnData(X=result.expression, obs=obs, var=var)
    adata.obsm["spatial"] = np.asarray(result.spots.centers, np.float64).reshape(-1, 2)
    adata.uns["spatial"] = {
        result.name: {
            "images": {"hires": result.slide.thumbnail},
            "scalefactors": {
                "tissue_hires_scalef": result.slide.thumbnail.shape[1] / result.slide.size[0],
                "spot_diameter_fullres": result.spot_diameter_px,
            },
            "metadata": {},
        }
    }
    adata.uns["m2ost"] = _storable(metadata)
    return adata


def _storable(value: Any) -> Any:
    """HDF5 has no null: what is None in the metadata is absent in the file."""
    if isinstance(value, dict):
        return {k: _storable(v) for k, v in value.items() if v is not None}
    return [_storable(v) for v in value] if isinstance(value, (list, tuple)) else value
