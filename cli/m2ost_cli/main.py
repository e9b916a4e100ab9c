"""Entry point of ``m2ost``: the commands, and what an error becomes on a terminal."""

from __future__ import annotations

import signal
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from m2ost_contract import M2OSTError

from . import (
    archive_commands,
    bench_commands,
    doctor_command,
    domains_command,
    model_commands,
    release_commands,
    report_command,
    serving_commands,
    training_commands,
)

EXIT_ERROR = 1

app = typer.Typer(
    help="M2OST on NVIDIA Triton: spatial gene expression from H&E whole-slide images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
model_commands.register(app)
training_commands.register(app)
release_commands.register(app)
serving_commands.register(app)
report_command.register(app)
domains_command.register(app)
archive_commands.register(app)
doctor_command.register(app)
bench_commands.register(app)


def _print_version(value: bool) -> None:
    if value:
        print(version("m2ost-triton"))
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
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
    except (M2OSTError, OSError) as error:  # anything else is a defect and keeps its traceback
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
