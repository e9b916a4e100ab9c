"""The command ``report``: pages and exports of results that are there already."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import needs

EXIT_PROBLEMS = 3
_SHOWN = 8


def report(
    target: Annotated[Path, typer.Argument(help="An .h5ad of predict, or a folder of them.")],
    genes: Annotated[
        list[str] | None, typer.Option("--map", help="A gene that the pages offer in any case; repeatable.")
    ] = None,
    geojson: Annotated[
        bool, typer.Option("--geojson", help="Also a .geojson for QuPath: genes of --map as measurements, or all.")
    ] = False,
    spatialdata: Annotated[bool, typer.Option("--spatialdata", help="Also a SpatialData folder (.zarr).")] = False,
    index_only: Annotated[bool, typer.Option("--index-only", help="Write no slide's page, only the index.")] = False,
    failures: Annotated[
        Path | None, typer.Option(help="CSV with the columns slide,reason: slides without a result, for the index.")
    ] = None,
) -> None:
    """Write a page for each result, and over a folder an index.html; exit 3 if a result could not be read.

    All are single files that fetch nothing.
    """
    with needs("client"):
        from m2ost_client.exports import Exports
        from m2ost_client.reports import report as make
        from m2ost_client.reports.archive import read_failures
    made = make(
        target,
        Exports(geojson=geojson, spatialdata=spatialdata, report=not index_only),
        genes=tuple(genes or ()),
        failures=read_failures(failures) if failures else (),
    )
    print(f"{target}: {made.results} result{'s' if made.results != 1 else ''}, {len(made.files)} files written")
    for file in made.files[-_SHOWN:]:
        print(f"  {shlex.quote(str(file))}")
    for problem in made.problems:
        print(f"  {problem.slide}: {problem.reason}", file=sys.stderr)
    if made.problems:
        raise typer.Exit(EXIT_PROBLEMS)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(report)
