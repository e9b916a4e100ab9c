"""Entry point of ``m2ost``: the commands, and what an error becomes on a terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer
from m2ost_contract import M2OSTError

from . import panels
from .archive_commands import join, rescore, status
from .bench_commands import bench
from .common import EXIT_INTERRUPTED
from .doctor_command import doctor
from .domains_command import domains
from .info_command import info
from .model_commands import convert, init
from .predict_command import predict
from .release_commands import build_engine, export, export_istar, fetch
from .report_command import report
from .serve_command import serve
from .training_commands import evaluate, panel, ship, split, train

EXIT_ERROR = 1

COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    panels.PREDICT: (predict, report, domains),
    panels.SERVE: (serve, doctor),
    panels.ARCHIVE: (rescore, join, status),
    panels.RELEASE: (export, build_engine, fetch, export_istar),
    panels.CHECKPOINT: (info, train, evaluate, split, panel, ship, convert, init),
}
"""Heading → commands, in the order in which `m2ost --help` shows them; `bench` follows, a group of its own."""

app = typer.Typer(
    help="Predict spatial gene expression from H&E whole-slide images, with M2OST on NVIDIA Triton.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _heading, _commands in COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_heading)(_command)
app.add_typer(
    bench,
    name="bench",
    help="Measure speed and truth; every comparison runs its sides in turns.",
    rich_help_panel=panels.BENCH,
)


def _print_version(value: bool) -> None:
    if value:
        print(version("m2ost-triton"))
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command.

    Exit status: 0 done; 1 an error, said in words; 2 usage; 3 some slides or spots have no value, or a
    threshold was missed; 4 no baseline to compare with; 130 interrupted.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except SystemExit as ended:
        if ended.code == EXIT_INTERRUPTED:
            print("interrupted; what lies under its final name is complete", file=sys.stderr)
        raise
    except (M2OSTError, OSError) as error:  # anything else is a defect and keeps its traceback
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
