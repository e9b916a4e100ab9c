"""How the further files of a result are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..exports import Exports
from ..files import REPORT_SUFFIX
from ..results import SlideResult, Writer
from .geojson import check_genes, write_geojson
from .slide_page import write_report
from .spatial import write_spatialdata

GEOJSON_SUFFIX = ".geojson"
SPATIALDATA_SUFFIX = ".zarr"


def writers(
    exports: Exports, result: SlideResult, metadata: Mapping[str, Any], genes: Sequence[str] = ()
) -> dict[str, Writer]:
    """What :func:`m2ost_client.files.write_result` and ``add_exports`` take.

    Parameters
    ----------
    exports : Exports
    result : SlideResult
    metadata : mapping
        As in ``<name>.json``; read when a file is written.
    genes : sequence of str
        Genes of the GeoJSON's measurements (by default all), and that the report offers in any case.

    Returns
    -------
    dict of str to Writer
        By file name.

    Raises
    ------
    InputError
        If a gene is not in the panel.
    """
    check_genes(result, genes)
    files: dict[str, Writer] = {}
    if exports.geojson:
        files[f"{result.name}{GEOJSON_SUFFIX}"] = partial(write_geojson, result, genes=genes)
    if exports.spatialdata:
        files[f"{result.name}{SPATIALDATA_SUFFIX}"] = partial(write_spatialdata, result, metadata)
    if exports.report:
        files[f"{result.name}{REPORT_SUFFIX}"] = partial(write_report, result, metadata, genes=genes)
    return files
