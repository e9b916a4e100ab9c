"""Check a GPU machine: what is computed there is right, then how fast it is.

Every part that lacks a library is reported as skipped, with the reason. Exit status: 0 all that ran is right; 1 a part
is wrong; 2 there is no GPU, and what could be checked on the CPU is right; 64 the command is wrong. It needs a checkout
with PYTHONPATH contract:preprocess:serving:model:export:client:loadtests:benchmarks, and nothing but NumPy, Pillow
and PyTorch.

Usage: python -m m2ost_bench.gpu_check --slide FILE [--slide FILE …] [--release DIR …] --out DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from m2ost_contract import MAX_ROWS
from m2ost_loadtests.machine import write_report

from .check import Check, Options
from .device import Pace
from .parts import RIGHT, SKIPPED, WRONG, Outcome


class _Parser(argparse.ArgumentParser):
    """Leaves status 2, argparse's own for a wrong command, to the machine without a GPU."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(64, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, check, print and write."""
    default = Options(())
    parser = _Parser(prog="gpu_check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--slide", type=Path, action="append", required=True, help="repeat: the first readable is taken"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default=default.device)
    parser.add_argument("--gpu", type=int, default=default.gpu)
    parser.add_argument("--checkpoint", type=Path, default=default.checkpoint)
    parser.add_argument("--release", type=Path, action="append", default=[], help="repeat, e.g. for another precision")
    parser.add_argument("--profile", default=default.profile, help="of the served release")
    parser.add_argument("--spots", type=int, default=default.spots)
    parser.add_argument("--batch-rows", type=int, default=default.batch_rows)
    parser.add_argument("--run-spots", type=int, help="most spots of a run from the slide's file on")
    parser.add_argument("--rounds", type=int, default=default.pace.rounds)
    parser.add_argument("--at-least-s", type=float, default=default.pace.at_least_s)
    parser.add_argument("--out", "-o", type=Path, required=True)
    given = parser.parse_args(arguments)
    if not (1 <= given.batch_rows <= MAX_ROWS and given.spots >= 2 and given.rounds >= 1):
        parser.error(f"--batch-rows must lie in 1 to {MAX_ROWS}, --spots be at least 2 and --rounds at least 1")
    if given.run_spots is not None and given.run_spots < 1:
        parser.error("--run-spots must be at least 1")
    options = Options(
        slides=tuple(given.slide),
        device=given.device,
        gpu=given.gpu,
        checkpoint=given.checkpoint,
        releases=tuple(given.release),
        profile=given.profile,
        spots=given.spots,
        batch_rows=given.batch_rows,
        run_spots=given.run_spots,
        pace=Pace(given.rounds, given.at_least_s),
    )
    report, status = Check(options, _print).run()
    if report["no_gpu"]:
        _write(f"no GPU: {report['no_gpu']}; checked on the CPU: {_names(report, RIGHT)}")
    _write(f"skipped: {_names(report, SKIPPED)}; wrong: {_names(report, WRONG)}")
    _write(str(write_report(report, given.out, "gpu_check")))
    return status


def _print(outcome: Outcome) -> None:
    _write(f"{outcome.status:8} {outcome.name}{': ' + outcome.reason if outcome.reason else ''}")
    for name, value in outcome.figures.items():
        for key, figure in value.items() if isinstance(value, dict) else (("", value),):
            shown = f"{figure:.4g}" if isinstance(figure, float) else figure
            _write(f"           {' '.join(filter(None, (name, key)))} {shown}")


def _names(report: dict[str, Any], status: str) -> str:
    return ", ".join(part["name"] for part in report["parts"] if part["status"] == status) or "nothing"


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
