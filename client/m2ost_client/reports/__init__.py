"""Results that people open: GeoJSON for QuPath, SpatialData, a page for each slide and an index over an archive."""

from .archive import export_stored, find_results, report, write_index
from .archive_page import Failure, Row, archive_page, read_row, row_of
from .geojson import write_geojson
from .slide_page import slide_page
from .stored import read_stored
from .writers import writers

__all__ = [
    "Failure",
    "Row",
    "archive_page",
    "export_stored",
    "find_results",
    "read_row",
    "read_stored",
    "report",
    "row_of",
    "slide_page",
    "write_geojson",
    "write_index",
    "writers",
]
