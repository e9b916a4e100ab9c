"""The group ``m2ost bench``: its options, and what all measurements do: the release, the slide, then options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from m2ost_contract import MAX_ROWS

from . import panels
from .numeric import positive
from .progress import working

bench = typer.Typer(no_args_is_help=True)

SPEED = "Speed of what is served"
MAPS = "Dense maps and iStar"
ARCHIVES = "Archives"
TRUTH = "Truth on data sets"
MACHINE = "Machine"
HEADINGS = (SPEED, MAPS, ARCHIVES, TRUTH, MACHINE)
"""In the order in which `m2ost bench --help` shows them."""

EXIT_UNFAIR = 3

Release = Annotated[Path, typer.Argument(help="Release folder, as `m2ost export` writes it.")]
Slide = Annotated[Path, typer.Argument(help="Slide file.")]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", help="Folder for the report, as JSON and as text.", rich_help_panel=panels.OUTPUT),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Checkpoint that the release was exported from. By default the one that ships."),
]
PitchUm = Annotated[
    float,
    typer.Option(parser=positive, metavar="UM", help="Pitch of the grid of spots in µm.", rich_help_panel=panels.SPOTS),
]
Rounds = Annotated[int, typer.Option(min=1, help="Number of rounds. Each round runs everything that is compared once.")]
SpotFile = Annotated[
    Path | None,
    typer.Option(
        help="Spot file, in a form that `m2ost predict --spots` takes. By default a grid.", rich_help_panel=panels.SPOTS
    ),
]
BatchRows = Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="Spots in a request.")]
Window = Annotated[int | None, typer.Option(min=1, help="Requests in flight. By default as in `m2ost predict`.")]


def measurement(heading: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of ``bench`` that shows how far it is."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(**given: Any) -> None:
            with working(function.__name__.replace("_", "-"), "runs"):
                function(**given)

        bench.command(rich_help_panel=heading)(run)
        return function

    return register


def say(words: str) -> None:
    """Tell what is being done, beside the report."""
    print(words, file=sys.stderr)


def write(report: dict[str, Any], text: str, out: Path, name: str, *more: str) -> Path:
    """Write a report as ``NAME.json`` and its text as ``NAME.md``; print the text, and the files with ``more``."""
    from m2ost_loadtests.machine import write_report

    file = write_report(report, out, name)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    for suffix in (".json", ".md", *more):
        print(f"  {file.with_suffix(suffix)}")
    return file


def checkpoint_or_shipped(given: Path | None) -> AbstractContextManager[Path]:
    """The checkpoint that was given, else the one that ships, for as long as the block lasts."""
    from m2ost.shipped import shipped_checkpoint

    return nullcontext(given) if given else shipped_checkpoint()
