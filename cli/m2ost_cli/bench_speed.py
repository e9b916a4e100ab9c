"""Measurements of speed, ``m2ost bench …``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from m2ost_contract import MAX_ROWS

from . import panels
from .bench_group import (
    SPEED,
    BatchRows,
    Checkpoint,
    Out,
    PitchUm,
    Release,
    Rounds,
    Slide,
    SpotFile,
    Window,
    checkpoint_or_shipped,
    measurement,
    say,
    write,
)
from .common import TlsCa, TlsCert, TlsKey, TokenFile, UserError, client_credentials, needs
from .numeric import positive
from .scoring_options import Mpp

Server = Annotated[
    str | None,
    typer.Option(
        help="host:port of a running server. By default one runs for this command.", rich_help_panel=panels.SERVER
    ),
]
ServedAs = Annotated[
    str | None,
    typer.Option(help="With --server: the slide's name there, root/relative/path.", rich_help_panel=panels.SERVER),
]
MetricsUrl = Annotated[str, typer.Option(help="With --server: URL of its metrics.", rich_help_panel=panels.SERVER)]
SpotsARequest = Annotated[
    int, typer.Option(min=1, max=MAX_ROWS, help="Spots in a request of a load.", rich_help_panel=panels.LOAD)
]
LoadSeconds = Annotated[
    float,
    typer.Option(parser=positive, metavar="SECONDS", help="Length of a load in seconds.", rich_help_panel=panels.LOAD),
]


def _target(server: str | None, served_as: str | None, metrics_url: str, credentials: Any) -> Any:
    """The server to measure; None for one that runs for the command."""
    from m2ost_loadtests.gate.measure import Target

    if (server is None) != (served_as is None):
        raise UserError("--server and --served-as belong together: the address, and the slide's name there")
    if server is None or served_as is None:
        return None
    return Target(address=server, slide=served_as, metrics_url=metrics_url, credentials=credentials)


@measurement(SPEED)
def gate(
    release: Release,
    slide: Slide,
    out: Out,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            help="Thresholds (YAML). By default those that ship with this package.", rich_help_panel=panels.COMPARED
        ),
    ] = None,
    server: Server = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    served_as: ServedAs = None,
    metrics_url: MetricsUrl = "",
    speedups: Annotated[
        Path | None,
        typer.Option(
            help="JSON that `m2ost bench istar` wrote, with the speed-ups over iStar.", rich_help_panel=panels.COMPARED
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="Compare absolute figures with this baseline, if it was measured on this machine.",
            rich_help_panel=panels.COMPARED,
        ),
    ] = None,
    write_baseline: Annotated[
        Path | None,
        typer.Option(
            help="Write this run's absolute figures to this file, unless it failed or missed a threshold.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
    pitch_um: PitchUm = 100.0,
    mpp: Mpp = None,
    rounds: Rounds = 5,
    users: Annotated[
        int, typer.Option(min=1, help="Number of users of the closed load.", rich_help_panel=panels.LOAD)
    ] = 8,
    spots: SpotsARequest = 8,
    load_s: LoadSeconds = 15.0,
) -> None:
    """Check that a release is served as fast as the thresholds ask, for CI.

    Exit status: 0 it is; 1 requests failed; 3 a threshold was missed; 4 there is no baseline to compare with.
    """
    with needs("loadtest"):
        from m2ost_loadtests.gate.measure import GateOptions, measure, read_speedups
        from m2ost_loadtests.gate.report import write_results
        from m2ost_loadtests.gate.thresholds import SHIPPED, read_thresholds
        from m2ost_loadtests.gate.verdicts import Baseline, Status, judge, status_of
    limits = read_thresholds(thresholds or SHIPPED)
    if baseline is not None and limits.baseline_tolerance is None:
        raise UserError(f"{thresholds}: --baseline needs `baseline_tolerance` in the thresholds file")
    then = Baseline.read(baseline) if baseline else None
    credentials = client_credentials(tls_ca, tls_cert, tls_key, token_file, elsewhere=server is not None)
    target = _target(server, served_as, metrics_url, credentials)
    try:
        options = GateOptions(
            release=release,
            slide=slide,
            target=target,
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
        say=say,
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


@measurement(SPEED)
def load(
    release: Release,
    slide: Slide,
    out: Out,
    server: Server = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    served_as: ServedAs = None,
    metrics_url: MetricsUrl = "",
    rounds: Rounds = 3,
    users: Annotated[int, typer.Option(min=1, help="Number of users of each load.", rich_help_panel=panels.LOAD)] = 16,
    spots: SpotsARequest = 8,
    load_s: LoadSeconds = 20.0,
) -> None:
    """Find what a server can serve, where queues begin, and what is left of it at four times as much.

    Exit status: 0, also where it is slow; 1 requests were lost, answered wrongly, or failed other than by a full queue.
    """
    with needs("loadtest"):
        from m2ost_bench.load.measure import LoadOptions, measure
        from m2ost_bench.load.report import to_markdown
        from m2ost_loadtests.gate.measure import served_target
    credentials = client_credentials(tls_ca, tls_cert, tls_key, token_file, elsewhere=server is not None)
    with served_target(_target(server, served_as, metrics_url, credentials), release, slide) as target:
        options = LoadOptions(
            release=release, slide=slide, target=target, seconds=load_s, users=users, spots=spots, rounds=rounds
        )
        report = measure(options, say)
    write(report, to_markdown(report), out, "load")
    if report["faults"]:
        raise typer.Exit(1)


@measurement(SPEED)
def served(
    release: Release,
    slide: Slide,
    out: Out,
    checkpoint: Checkpoint = None,
    pitch_um: PitchUm = 50.0,
    rounds: Rounds = 5,
    batch_rows: BatchRows = 32,
    window: Window = None,
    profile: Annotated[
        str, typer.Option(help="Profile that is served, one of an engine on the CPU.", rich_help_panel=panels.ENGINE)
    ] = "cpu",
) -> None:
    """Compare the served release with a bare ONNX Runtime session and with the authors' code."""
    with needs("loadtest"), needs("export"):
        from m2ost_bench.served.served_vs_bare import measure, to_markdown
    stream = _stream(batch_rows, window)
    with checkpoint_or_shipped(checkpoint) as source:
        report = measure(
            release, slide, checkpoint=source, pitch_um=pitch_um, rounds=rounds, stream=stream, profile=profile
        )
    write(report, to_markdown(report), out, "served_vs_bare")


def _stream(batch_rows: int | None, window: int | None) -> Any:
    from m2ost_client.stream import StreamOptions

    default = StreamOptions()
    return StreamOptions(batch_rows=batch_rows or default.batch_rows, window=window or default.window)


@measurement(SPEED)
def soak(
    release: Release,
    slide: Slide,
    out: Out,
    spots: Annotated[int, typer.Option(min=20, help="Number of spots to stream. They are drawn by chance.")] = 50_000,
    window: Window = None,
) -> None:
    """Watch the memory of client and server while many spots are scored.

    Use a narrow release of depth 1, so that it takes minutes and not days.
    """
    with needs("loadtest"):
        from m2ost_bench.served.soak import measure, to_markdown
    report = measure(release, slide, spots, stream=_stream(None, window))
    write(report, to_markdown(report), out, "soak")


@measurement(SPEED)
def scale(
    release: Release,
    slide: Slide,
    out: Out,
    side_px: Annotated[int, typer.Option(min=2_000, help="Width and height of the slide that is made.")] = 50_000,
    spots: Annotated[list[int], typer.Option(min=16, help="Number of spots to score, about so many; repeatable.")] = [
        1_000,
        10_000,
        100_000,
    ],
    rounds: Rounds = 1,
    window: Window = None,
) -> None:
    """Count what a spot costs on a very large slide made of the tissue of a real one, from few spots to many.

    Use a narrow release of depth 1, so that it takes minutes and not hours.
    """
    with needs("loadtest"):
        from m2ost_bench.served.scale import ScaleOptions, measure, to_markdown
    options = ScaleOptions(side_px=side_px, spots=tuple(spots), rounds=rounds, stream=_stream(None, window))
    out.mkdir(parents=True, exist_ok=True)
    report = measure(release, slide, out, options, say)
    write(report, to_markdown(report), out, "scale")


@measurement(SPEED)
def engines(
    release: Annotated[Path, typer.Argument(help="Release folder, in float32.")],
    slide: Slide,
    out: Out,
    checkpoint: Checkpoint = None,
    spots: SpotFile = None,
    most_spots: Annotated[int, typer.Option(min=2, help="Most spots that r per gene is measured on.")] = 64,
    threads: Annotated[
        list[int],
        typer.Option(
            min=1,
            help="Number of threads; repeatable. By default one, and one for each core.",
            rich_help_panel=panels.COMPARED,
        ),
    ] = [],
    batch: Annotated[
        list[int],
        typer.Option(min=1, max=MAX_ROWS, help="Rows of a batch; repeatable.", rich_help_panel=panels.COMPARED),
    ] = [1, 16, 32],
    rounds: Rounds = 7,
    only: Annotated[
        list[str],
        typer.Option(
            help="Measure only this engine beside the two references; repeatable.", rich_help_panel=panels.COMPARED
        ),
    ] = [],
) -> None:
    """Compare engines on this CPU, in turns: their speed as ratios, and r per gene on real spots."""
    with needs("loadtest"), needs("export"):
        from m2ost_bench.engines.speed import EngineSpeedOptions, measure, to_markdown
    with checkpoint_or_shipped(checkpoint) as source:
        options = EngineSpeedOptions(
            release=release,
            checkpoint=source,
            slide=slide,
            spots=spots,
            threads=tuple(threads) or tuple(sorted({1, len(os.sched_getaffinity(0))})),
            batches=tuple(batch),
            rounds=rounds,
            most_spots=most_spots,
            only=tuple(only),
        )
        report = measure(options, say)
    write(report, to_markdown(report), out, "engines")


@measurement(SPEED)
def threads(release: Release, slide: Slide, out: Out, pitch_um: PitchUm = 50.0, rounds: Rounds = 5) -> None:
    """Compare ways to share the cores of this CPU between engine and tiler."""
    with needs("loadtest"):
        from m2ost_bench.engines.threads import measure, to_markdown
    report = measure(release, slide, pitch_um=pitch_um, rounds=rounds)
    write(report, to_markdown(report), out, "engine_threads")


@measurement(SPEED)
def tiler(
    release: Release,
    slide: Annotated[Path, typer.Argument(help="Slide file that is tiled and has µm/px, best with lower levels.")],
    out: Out,
    pitch_um: PitchUm = 100.0,
    rounds: Rounds = 5,
    drift_spots: Annotated[
        int, typer.Option(min=2, help="Most spots that views from lower levels are compared on.")
    ] = 128,
) -> None:
    """Compare the tiler with other libraries, and a whole prediction with its slower half."""
    with needs("loadtest"):
        from m2ost_bench.tiler.measure import measure
        from m2ost_bench.tiler.report import to_markdown
    report = measure(release, slide, pitch_um=pitch_um, drift_spots=drift_spots, rounds=rounds, tell=say)
    write(report, to_markdown(report), out, "tiler")
