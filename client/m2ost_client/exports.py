"""Which further files a result has; :mod:`m2ost_client.reports` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from m2ost_contract import install_command

from .errors import InputError


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
        if self.spatialdata and find_spec("spatialdata") is None:
            raise InputError(f"SpatialData needs the extra 'spatialdata': {install_command('spatialdata')}")

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return self.geojson or self.spatialdata or self.report
