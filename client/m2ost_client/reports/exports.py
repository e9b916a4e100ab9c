"""Which further files a result has, and how each is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..results import SlideResult, Writer
from . import spatial
from .archive_page import REPORT_SUFFIX
from .geojson import check_genes, write_geojson
from .slide_page import write_report

GEOJSON_SUFFIX = ".geojson"
SPATIALDATA_SUFFIX = ".zarr"


@dataclass(frozen=True, kw_only=True)
class Exports:
    """Files beside a result's table, by format.

    Parameters
    ----------
    geojson : bool
        ``<name>.geojson``, for QuPath.
    spatialdata : bool
        ``<name>.zarr``, a SpatialData folder.
    report : bool
        ``<name>.report.html``, a page in one file.
    """

    geojson: bool = False
    spatialdata: bool = False
    report: bool = False

    def check_installed(self) -> None:
        """Whether all can be written here, told before any work is done.

        Raises
        ------
        InputError
            If an extra is missing.
        """
        if self.spatialdata:
            spatial.check_installed()

    def writers(self, result: SlideResult, metadata: Mapping[str, Any], genes: Sequence[str] = ()) -> dict[str, Writer]:
        """What :func:`m2ost_client.files.write_result` and ``add_exports`` take.

        Parameters
        ----------
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
        if self.geojson:
            files[f"{result.name}{GEOJSON_SUFFIX}"] = partial(write_geojson, result, genes=genes)
        if self.spatialdata:
            files[f"{result.name}{SPATIALDATA_SUFFIX}"] = partial(spatial.write_spatialdata, result, metadata)
        if self.report:
            files[f"{result.name}{REPORT_SUFFIX}"] = partial(write_report, result, metadata, genes=genes)
        return files
