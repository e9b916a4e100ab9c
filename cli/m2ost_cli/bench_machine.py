"""The check of a GPU machine, ``m2ost bench gpu-check``."""

from __future__ import annotations

import typer

from .bench_group import MACHINE, bench
from .common import needs


@bench.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
    rich_help_panel=MACHINE,
)
def gpu_check(context: typer.Context) -> None:
    """Check on a GPU machine that results are right, and measure how fast it is.

    `m2ost bench gpu-check --help` shows its options.
    """
    with needs("export"):
        from m2ost_bench.gpu_check.__main__ import main
    raise typer.Exit(main(context.args))
