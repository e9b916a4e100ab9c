"""Measurements: ``bench gate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import UserError, needs

bench = typer.Typer(help="Measure a served release.", no_args_is_help=True)


@bench.command()
def gate(
    release: Annotated[Path, typer.Argument(help="The release that is served.")],
    slide: Annotated[Path, typer.Argument(help="A slide file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for JSON, Markdown and github-action-benchmark's input.")],
    thresholds: Annotated[
        Path | None, typer.Option(help="What to let pass (YAML); by default the limits that ship.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="host:port of a running server; without it one runs for this.")
    ] = None,
    served_as: Annotated[
        str | None, typer.Option(help="With --server: the slide's name there, root/relative/path.")
    ] = None,
    metrics_url: Annotated[str, typer.Option(help="With --server: address of its metrics.")] = "",
    speedups: Annotated[
        Path | None, typer.Option(help="Speed-ups over iStar, as `m2ost bench istar` writes them (JSON).")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Compare absolute figures with this baseline, if it is of this machine.")
    ] = None,
    write_baseline: Annotated[
        Path | None,
        typer.Option(help="Write this run's absolute figures here, unless it failed or missed a threshold."),
    ] = None,
    pitch_um: Annotated[float, typer.Option(help="Pitch of the grid of spots in µm.")] = 100.0,
    mpp: Annotated[float | None, typer.Option(help="µm/px of the slide, in place of what the file says.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of served and bare inference, in turn.")] = 5,
    users: Annotated[int, typer.Option(help="Users of the closed load.")] = 8,
    spots: Annotated[int, typer.Option(help="Spots a request of the closed load.")] = 8,
    load_s: Annotated[float, typer.Option(help="Length of the closed load in seconds.")] = 15.0,
) -> None:
    """Exit 0 if a release is served as fast as the thresholds ask; 1 failures, 3 one missed, 4 no baseline."""
    with needs("loadtest"):
        from m2ost_loadtests.gate import GateOptions, Target, measure, read_speedups
        from m2ost_loadtests.gate_report import write_results
        from m2ost_loadtests.thresholds import SHIPPED, read_thresholds
        from m2ost_loadtests.verdicts import Baseline, Status, judge, status_of
    limits = read_thresholds(thresholds or SHIPPED)
    if baseline is not None and limits.baseline_tolerance is None:
        raise UserError(f"{thresholds}: --baseline needs `baseline_tolerance` in the thresholds file")
    then = Baseline.read(baseline) if baseline else None
    if (server is None) != (served_as is None):
        raise UserError("--server and --served-as belong together: the address, and the slide's name there")
    try:
        options = GateOptions(
            release=release,
            slide=slide,
            target=Target(address=server, slide=served_as, metrics_url=metrics_url) if server and served_as else None,
            pitch_um=pitch_um,
            mpp=mpp,
            rounds=rounds,
            users=users,
            spots=spots,
            load_s=load_s,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    found = measure(
        options,
        limits,
        speedups=read_speedups(speedups) if speedups else None,
        say=lambda words: print(words, file=sys.stderr),
    )
    verdicts = judge(found, limits, baseline=then, asked_for_baseline=baseline is not None)
    status = status_of(verdicts)
    for verdict in verdicts:
        print(verdict)
    for reason, count in found.failures.items():
        print(f"  {count} failed: {reason}")
    for file in write_results(found, verdicts, out):
        print(f"  {file}")
    if write_baseline is not None:
        if status in (Status.PASSED, Status.NO_BASELINE):
            Baseline.of(found).write(write_baseline)
            print(f"  {write_baseline}")
        else:
            print(f"{write_baseline}: not written, for this run is none to hold others against", file=sys.stderr)
    if status is not Status.PASSED:
        raise typer.Exit(int(status))


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.add_typer(bench, name="bench")
