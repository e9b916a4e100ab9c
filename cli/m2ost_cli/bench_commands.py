"""Measurements: ``bench istar``, ``bench gate`` and ``bench engines``."""

from __future__ import annotations

import os
import re
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated

import typer

from .common import UserError, cache_folder, needs, read_genes
from .serving_commands import shipped_release

bench = typer.Typer(help="Measure a served release.", no_args_is_help=True)


EXIT_UNFAIR = 3
_SIZE = re.compile(r"([0-9]*\.?[0-9]+) *(MiB|GiB)")


@bench.command()
def istar(
    slide: Annotated[Path, typer.Argument(help="A slide file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for JSON, Markdown and the bar chart.")],
    release: Annotated[
        Path | None, typer.Option(help="M2OST, as exported; by default that of the shipped checkpoint.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="iStar, as `m2ost export-istar` writes it; by default with random weights.")
    ] = None,
    memory_cap: Annotated[str, typer.Option(help="Most memory of a system and its decoder, in MiB or GiB.")] = "2GiB",
    variant: Annotated[
        list[str], typer.Option(help="stock, no_shift or tissue; may be repeated. By default all.")
    ] = [],
    spots: Annotated[Path | None, typer.Option(help="Spot file, as for predict; by default a grid.")] = None,
    pitch_um: Annotated[float, typer.Option(help="Pitch of the grid in µm.")] = 100.0,
    spot_diameter_um: Annotated[float, typer.Option(help="Diameter of a spot in µm.")] = 100.0,
    mpp: Annotated[float | None, typer.Option(help="µm/px of the slide, in place of what the file says.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; in each, every system runs once.")] = 3,
    sample_batches: Annotated[
        int, typer.Option(help="Mini-batches of iStar to run a round, scaled to the slide; 0 runs all.")
    ] = 1,
    served: Annotated[bool, typer.Option(help="Also through one Triton.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda; on a GPU the cap is its allocator's.")] = "cpu",
) -> None:
    """Compare M2OST with iStar on a slide, interleaved, under one memory cap; exit 3 if the comparison is not fair."""
    with needs("loadtest"), needs("export"):
        from m2ost.complexity import count
        from m2ost.config import M2OSTConfig
        from m2ost_bench.istar.comparison import ComparisonOptions, compare
        from m2ost_bench.istar.comparison_report import draw, to_markdown
        from m2ost_contract import Manifest
        from m2ost_loadtests.machine import write_report
        from m2ost_preprocess.istar.geometry import VARIANTS
    release = release or shipped_release()
    options = ComparisonOptions(
        slide=slide,
        release=release,
        baseline=baseline or _random_baseline(),
        flop_per_spot=count(M2OSTConfig.from_dict(Manifest.read(release).architecture)).flop,
        memory_cap_bytes=_bytes(memory_cap),
        spots_file=spots,
        pitch_um=pitch_um,
        spot_diameter_um=spot_diameter_um,
        mpp=mpp,
        variants=tuple(variant) or tuple(VARIANTS),
        rounds=rounds,
        sample_batches=sample_batches or None,
        served=served,
        device=device,
    )
    report = compare(options, lambda text: print(text, file=sys.stderr))
    file = write_report(report, out, "istar")
    text = to_markdown(report)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(report, file.with_suffix(".png"))
    print(text)
    for suffix in (".json", ".md", ".png"):
        print(f"  {file.with_suffix(suffix)}")
    if not report["fair"]:
        raise typer.Exit(EXIT_UNFAIR)


def _bytes(size: str) -> int:
    found = _SIZE.fullmatch(size)
    if found is None:
        raise UserError(f"--memory-cap {size}: give a size such as 512MiB or 4GiB")
    return int(float(found[1]) * (1 << (20 if found[2] == "MiB" else 30)))


def _random_baseline() -> Path:
    """The baseline with random weights, exported into the user's cache the first time it is asked for."""
    from m2ost.peers.istar import build
    from m2ost_export.istar import FAMILY, build_baseline
    from m2ost_export.repository import template_sha256
    from m2ost_preprocess.istar.sizes import Sizes

    sizes = Sizes()
    folder = cache_folder() / f"istar-random-{template_sha256(FAMILY)[:12]}"
    if not folder.exists():
        print(f"exporting iStar with random weights to {folder}, once", file=sys.stderr)
        with suppress(FileExistsError):  # another run was faster
            build_baseline(build(sizes), read_genes(None, sizes.n_genes), folder, variant="tissue")
    return folder


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
        from m2ost_loadtests.gate.measure import GateOptions, Target, measure, read_speedups
        from m2ost_loadtests.gate.report import write_results
        from m2ost_loadtests.gate.thresholds import SHIPPED, read_thresholds
        from m2ost_loadtests.gate.verdicts import Baseline, Status, judge, status_of
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


@bench.command()
def engines(
    release: Annotated[Path, typer.Argument(help="A release in float32.")],
    slide: Annotated[Path, typer.Option(help="A slide whose spots are scored.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for JSON and Markdown.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="What the release was exported from; by default the checkpoint that ships.")
    ] = None,
    spots: Annotated[Path | None, typer.Option(help="Spot file, as for predict; by default a grid.")] = None,
    most_spots: Annotated[int, typer.Option(help="Most spots that truth is judged on.")] = 64,
    threads: Annotated[list[int], typer.Option(help="Threads; may be repeated. By default one, and all cores.")] = [],
    batch: Annotated[list[int], typer.Option(help="Rows of a batch; may be repeated.")] = [1, 16, 32],
    rounds: Annotated[int, typer.Option(help="Rounds; in each, every engine runs once.")] = 7,
    only: Annotated[list[str], typer.Option(help="Only these engines, beside the two compared with.")] = [],
) -> None:
    """Compare engines on this CPU: speed as ratios, interleaved, and r per gene on real spots."""
    with needs("loadtest"), needs("export"):
        from m2ost.shipped import shipped_checkpoint
        from m2ost_bench.engines.speed import EngineSpeedOptions, measure, to_markdown
        from m2ost_loadtests.machine import write_report
    if rounds < 1 or most_spots < 2 or any(n < 1 for n in [*threads, *batch]):
        raise UserError("--rounds, --threads and --batch must be 1 at least, --most-spots 2")
    with nullcontext(checkpoint) if checkpoint else shipped_checkpoint() as source:
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
        report = measure(options, lambda words: print(words, file=sys.stderr))
    file = write_report(report, out, "engines")
    text = to_markdown(report)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    for suffix in (".json", ".md"):
        print(f"  {file.with_suffix(suffix)}")


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.add_typer(bench, name="bench")
