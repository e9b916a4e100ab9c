"""The command ``domains``: groups of spots of like expression."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import needs
from .numeric import positive

EXIT_LEFT_OUT = 3


def domains(
    expression: Annotated[
        Path,
        typer.Argument(help="An .h5ad of `m2ost predict`, an .h5ad of counts, or a table of counts (.tsv, .tsv.gz)."),
    ],
    k: Annotated[int, typer.Option("--k", min=2, help="Number of domains to find.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the table, the map and the record.")],
    method: Annotated[
        str, typer.Option(help="gmm, kmeans, leiden, staig or mcgae. The last two need the extra train.")
    ] = "gmm",
    spots: Annotated[
        Path | None,
        typer.Option(help="File of positions for a table of counts, in a form that `m2ost predict --spots` takes."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Print the adjusted Rand index with these labels: a table of label and spot (or x, y), or an .h5ad of "
            "domains."
        ),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(parser=positive, metavar="UM", help="µm/px for the scale bar, in place of what the file says."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")] = 0,
) -> None:
    """Find the spatial domains of a section, from measured or predicted expression.

    For leiden, the command searches the resolution that gives k domains. Exit status 3: a spot was left out.
    """
    with needs("domains"):
        from m2ost_domains.expression import read_expression
        from m2ost_domains.methods import GRAPH_METHODS, DomainOptions
        from m2ost_domains.run import run
    if method in GRAPH_METHODS:
        with needs("train"):
            import torch  # noqa: F401
    options = DomainOptions(k=k, method=method, seed=seed)
    found = run(read_expression(expression, spots=spots, mpp=mpp), options, out, labels=labels)
    record = found.record
    print(
        f"{expression}: {record['found']} domains of {record['spots']} spots ({', '.join(map(str, record['sizes']))})"
    )
    if "agreement" in record:
        with_labels = record["agreement"]
        print(f"  ARI {with_labels['ari']:.3f} with {with_labels['labels']} labels of {with_labels['spots']} spots")
    for file in found.files:
        print(f"  {shlex.quote(str(file))}")
    if record["found"] != k:
        print(f"{method} found {record['found']} domains, not {k}", file=sys.stderr)
    for reason, count in record["left_out"].items():
        print(f"{count} spot{'s' if count != 1 else ''} left out: {reason}", file=sys.stderr)
    if record["left_out"]:
        raise typer.Exit(EXIT_LEFT_OUT)
