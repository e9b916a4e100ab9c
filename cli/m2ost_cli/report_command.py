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
    target: Annotated[
        Path, typer.Argument(help="An .h5ad that `m2ost predict` or `m2ost rescore` wrote, or a folder of them.")
    ],
    genes: Annotated[
        list[str] | None, typer.Option("--map", help="Draw a map of this gene on every page; repeatable.")
    ] = None,
    geojson: Annotated[
        bool,
        typer.Option("--geojson", help="Write a .geojson for QuPath too, with the genes of --map, or else with all."),
    ] = False,
    spatialdata: Annotated[bool, typer.Option("--spatialdata", help="Write a SpatialData folder (.zarr) too.")] = False,
    index_only: Annotated[
        bool, typer.Option("--index-only", help="Write only the index, and no page of a slide.")
    ] = False,
    failures: Annotated[
        Path | None,
        typer.Option(help="CSV file with the columns slide,reason. The index lists these slides as failed."),
    ] = None,
) -> None:
    """Write a page for each result, and an index.html for a folder of results.

    Each page is one file that fetches nothing. Exit status 3: a result could not be read.
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
