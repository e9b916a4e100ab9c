"""A slide's result as AnnData. A module of its own, for anndata takes seconds to import."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd

from .results import SlideResult, status_name


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
