"""Options of commands that score slides, and which of them go together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from m2ost_contract import MAX_ROWS

from . import panels
from .common import UserError
from .numeric import positive

GeoJson = Annotated[
    bool,
    typer.Option(
        "--geojson",
        help="Write a .geojson for QuPath too, with the genes of --map, or else with all.",
        rich_help_panel=panels.OUTPUT,
    ),
]
SpatialData = Annotated[
    bool,
    typer.Option("--spatialdata", help="Write a SpatialData folder (.zarr) too.", rich_help_panel=panels.OUTPUT),
]
Mpp = Annotated[
    float | None,
    typer.Option(
        parser=positive,
        metavar="UM",
        help="µm/px of the slide, in place of what the file says.",
        rich_help_panel=panels.SLIDE,
    ),
]
ViewMpp = Annotated[
    str | None,
    typer.Option(
        metavar="UM|model",
        help="Cut views at this µm/px, or at that of the model's training. By default at the slide's own pixels.",
        rich_help_panel=panels.SLIDE,
    ),
]
Pyramid = Annotated[
    bool,
    typer.Option(
        "--pyramid",
        help="Cut coarse views from the slide's own lower levels. This is faster and gives other values.",
        rich_help_panel=panels.SLIDE,
    ),
]
BatchRows = Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="Spots in a request.", rich_help_panel=panels.SERVER)]
ReleaseToServe = Annotated[
    Path | None,
    typer.Option(
        help="Release for the embedded server. By default that of the shipped checkpoint.",
        rich_help_panel=panels.ENGINE,
    ),
]
CheckpointToServe = Annotated[
    Path | None,
    typer.Option(help="Checkpoint to export for the embedded server.", rich_help_panel=panels.ENGINE),
]
ServerLog = Annotated[
    Path | None,
    typer.Option(help="Write the embedded server's JSON log to this file.", rich_help_panel=panels.ENGINE),
]


def check_server_options(
    elsewhere: bool,
    send_pixels: bool,
    model: str | None,
    release: Path | None,
    checkpoint: Path | None,
    profile: str | None,
) -> None:
    """Refuse options of a server elsewhere where none is asked, and those of the embedded one where it does not run.

    Raises
    ------
    UserError
        Names the options, and what to do.
    """
    if send_pixels and not elsewhere:
        raise UserError("--send-pixels is for a server elsewhere; give --server ADDRESS")
    if model and not elsewhere:
        raise UserError("--model is for a server of several releases; give --server ADDRESS")
    if elsewhere and (release or checkpoint or profile):
        raise UserError("--server serves a release in its own way; leave --release, --checkpoint and --profile out")
