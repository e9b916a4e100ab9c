"""A result as SpatialData: what the scverse tools and napari-spatialdata open."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..results import SlideResult
from ..tables import to_anndata

COORDINATE_SYSTEM = "global"
"""Level-0 pixels of the slide."""


def to_spatialdata(result: SlideResult, metadata: Mapping[str, Any]) -> Any:
    """A result as a ``SpatialData`` object.

    Its elements, in the coordinate system ``global``, which is level-0 pixels:

    - image ``thumbnail`` (c, y, x), with the scale that takes its pixels there;
    - shapes ``spots``: circles at the spots' centres, as wide as a spot;
    - table ``table``: spots × genes, NaN where a spot has no value; its ``obs["status"]`` says why.

    A slide without spots has the image alone, for shapes cannot be empty.

    Parameters
    ----------
    result : SlideResult
    metadata : mapping
        For the table's ``uns["m2ost"]``.

    Returns
    -------
    spatialdata.SpatialData
    """
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    thumbnail = result.slide.thumbnail
    width, height = result.slide.size
    scale = Scale([width / thumbnail.shape[1], height / thumbnail.shape[0]], axes=("x", "y"))
    image = Image2DModel.parse(
        np.moveaxis(thumbnail, 2, 0),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={COORDINATE_SYSTEM: scale},
    )
    if not len(result.spots):
        return SpatialData(images={"thumbnail": image})
    table = to_anndata(result, dict(metadata))
    del table.uns["spatial"]
    table.obs["region"] = "spots"
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs["spot"] = np.asarray(table.obs_names, dtype=object)
    shapes = ShapesModel.parse(
        table.obsm["spatial"],
        geometry=0,
        radius=result.spot_diameter_px / 2,
        index=table.obs_names,
        transformations={COORDINATE_SYSTEM: Identity()},
    )
    return SpatialData(
        images={"thumbnail": image},
        shapes={"spots": shapes},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="spot")},
    )


def write_spatialdata(result: SlideResult, metadata: Mapping[str, Any], path: Path) -> None:
    """Write :func:`to_spatialdata` as a Zarr folder, which must not exist."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "zarr v3 autosharding")  # of a default that SpatialData leaves to AnnData
        to_spatialdata(result, metadata).write(path)
