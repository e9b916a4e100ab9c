"""Measurements, ``m2ost bench …``: the release, the slide, then options."""

from __future__ import annotations

import os
import re
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import TlsCa, TlsCert, TlsKey, TokenFile, UserError, cache_folder, client_credentials, needs, read_genes

bench = typer.Typer(help="Measure a served release: ratios of one run.", no_args_is_help=True)

EXIT_UNFAIR = 3
_SIZE = re.compile(r"([0-9]*\.?[0-9]+) *(MiB|GiB)")

Release = Annotated[Path, typer.Argument(help="A release, as `m2ost export` writes it.")]
Slide = Annotated[Path, typer.Argument(help="A slide file.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for what was found, as JSON and in words.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="What the release was exported from; by default the checkpoint that ships.")
]
Mpp = Annotated[float | None, typer.Option(help="µm/px of the slide, in place of what the file says.")]
PitchUm = Annotated[float, typer.Option(help="Pitch of the grid of spots in µm.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds; in each, everything that is compared runs once.")]
SpotFile = Annotated[Path | None, typer.Option(help="Spot file, as for predict; by default a grid.")]


def _say(words: str) -> None:
    print(words, file=sys.stderr)


def _write(report: dict[str, Any], text: str, out: Path, name: str, *more: str) -> Path:
    """Write a report as ``NAME.json`` and its text as ``NAME.md``; print the text, and the files with ``more``."""
    from m2ost_loadtests.machine import write_report

    file = write_report(report, out, name)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    for suffix in (".json", ".md", *more):
        print(f"  {file.with_suffix(suffix)}")
    return file


def _checkpoint(given: Path | None) -> AbstractContextManager[Path]:
    from m2ost.shipped import shipped_checkpoint

    return nullcontext(given) if given else shipped_checkpoint()


@bench.command()
def istar(
    release: Release,
    slide: Slide,
    out: Out,
    istar: Annotated[
        Path | None, typer.Option(help="iStar, as `m2ost export-istar` writes it; by default with random weights.")
    ] = None,
    memory_cap: Annotated[str, typer.Option(help="Most memory of a system and its decoder, in MiB or GiB.")] = "2GiB",
    variant: Annotated[
        list[str], typer.Option(help="stock, no_shift or tissue; may be repeated. By default all.")
    ] = [],
    spots: SpotFile = None,
    pitch_um: PitchUm = 100.0,
    spot_diameter_um: Annotated[float, typer.Option(help="Diameter of a spot in µm.")] = 100.0,
    mpp: Mpp = None,
    rounds: Rounds = 3,
    sample_batches: Annotated[
        int, typer.Option(help="Mini-batches of iStar to run a round, scaled to the slide; 0 runs all.")
    ] = 1,
    served: Annotated[bool, typer.Option(help="Also through one Triton.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda; on a GPU the cap is its allocator's.")] = "cpu",
    refined: Annotated[
        Path | None,
        typer.Option(help="Ratios of maps with a tolerance too, from what `m2ost bench dense` wrote (JSON)."),
    ] = None,
) -> None:
    """Compare M2OST with iStar on a slide, interleaved, under one memory cap; exit 3 if the comparison is not fair."""
    with needs("loadtest"), needs("export"):
        from m2ost.complexity import count
        from m2ost.systems.registry import from_dict
        from m2ost_bench.istar.comparison import ComparisonOptions, compare
        from m2ost_bench.istar.comparison_report import draw, to_markdown
        from m2ost_bench.istar.refined_map import read_maps
        from m2ost_bench.istar.speedups import with_tolerances
        from m2ost_contract import Manifest
        from m2ost_istar.geometry import VARIANTS
    maps = read_maps(refined) if refined else None
    options = ComparisonOptions(
        slide=slide,
        release=release,
        istar=istar or _random_istar(),
        flop_per_spot=count(from_dict(Manifest.read(release).architecture)).flop,
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
    report = compare(options, _say)
    if maps:
        report["refined"] = with_tolerances(report, maps)
    draw(report, _write(report, to_markdown(report), out, "istar", ".png").with_suffix(".png"))
    if not report["fair"]:
        raise typer.Exit(EXIT_UNFAIR)


def _bytes(size: str) -> int:
    found = _SIZE.fullmatch(size)
    if found is None:
        raise UserError(f"--memory-cap {size}: give a size such as 512MiB or 4GiB")
    return int(float(found[1]) * (1 << (20 if found[2] == "MiB" else 30)))


def _random_istar() -> Path:
    """iStar with random weights, exported into the user's cache the first time it is asked for."""
    from m2ost_istar.export import TEMPLATES, build_istar
    from m2ost_istar.networks.istar import build
    from m2ost_istar.sizes import Sizes
    from m2ost_serving.repository import template_sha256

    sizes = Sizes()
    folder = cache_folder() / f"istar-random-{template_sha256(TEMPLATES)[:12]}"
    if not folder.exists():
        print(f"exporting iStar with random weights to {folder}, once", file=sys.stderr)
        with suppress(FileExistsError):  # another run was faster
            build_istar(build(sizes), read_genes(None, sizes.n_genes), folder, variant="tissue")
    return folder


@bench.command()
def gate(
    release: Release,
    slide: Slide,
    out: Out,
    thresholds: Annotated[
        Path | None, typer.Option(help="What to let pass (YAML); by default the limits that ship.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="host:port of a running server; without it one runs for this.")
    ] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
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
    pitch_um: PitchUm = 100.0,
    mpp: Mpp = None,
    rounds: Rounds = 5,
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
    credentials = client_credentials(tls_ca, tls_cert, tls_key, token_file, elsewhere=server is not None)
    target = None
    if server and served_as:
        target = Target(address=server, slide=served_as, metrics_url=metrics_url, credentials=credentials)
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
        say=_say,
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
def served(
    release: Release,
    slide: Slide,
    out: Out,
    checkpoint: Checkpoint = None,
    pitch_um: PitchUm = 50.0,
    rounds: Rounds = 5,
    batch_rows: Annotated[int | None, typer.Option(min=1, help="Spots a request; by default the client's.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Requests in flight; by default the client's.")] = None,
    profile: Annotated[str, typer.Option(help="What is served, by an engine on the CPU.")] = "cpu",
) -> None:
    """Compare the served ensemble with a bare ONNX Runtime session and with the authors' way."""
    with needs("loadtest"), needs("export"):
        from m2ost_bench.served.served_vs_bare import measure, to_markdown
    stream = _stream(batch_rows, window)
    with _checkpoint(checkpoint) as source:
        report = measure(
            release, slide, checkpoint=source, pitch_um=pitch_um, rounds=rounds, stream=stream, profile=profile
        )
    _write(report, to_markdown(report), out, "served_vs_bare")


def _stream(batch_rows: int | None, window: int | None) -> Any:
    from m2ost_client.stream import StreamOptions

    default = StreamOptions()
    return StreamOptions(batch_rows=batch_rows or default.batch_rows, window=window or default.window)


@bench.command()
def soak(
    release: Release,
    slide: Slide,
    out: Out,
    spots: Annotated[int, typer.Option(min=20, help="Spots to stream; they are drawn by chance.")] = 50_000,
    window: Annotated[int | None, typer.Option(min=1, help="Requests in flight; by default the client's.")] = None,
) -> None:
    """Watch the memory of client and server while spots stream; use a narrow release of depth 1."""
    with needs("loadtest"):
        from m2ost_bench.served.soak import measure, to_markdown
    report = measure(release, slide, spots, stream=_stream(None, window))
    _write(report, to_markdown(report), out, "soak")


@bench.command()
def engines(
    release: Annotated[Path, typer.Argument(help="A release in float32.")],
    slide: Slide,
    out: Out,
    checkpoint: Checkpoint = None,
    spots: SpotFile = None,
    most_spots: Annotated[int, typer.Option(min=2, help="Most spots that truth is judged on.")] = 64,
    threads: Annotated[
        list[int], typer.Option(min=1, help="Threads; may be repeated. By default one, and all cores.")
    ] = [],
    batch: Annotated[list[int], typer.Option(min=1, help="Rows of a batch; may be repeated.")] = [1, 16, 32],
    rounds: Rounds = 7,
    only: Annotated[list[str], typer.Option(help="Only these engines, beside the two compared with.")] = [],
) -> None:
    """Compare engines on this CPU: speed as ratios, interleaved, and r per gene on real spots."""
    with needs("loadtest"), needs("export"):
        from m2ost_bench.engines.speed import EngineSpeedOptions, measure, to_markdown
    with _checkpoint(checkpoint) as source:
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
        report = measure(options, _say)
    _write(report, to_markdown(report), out, "engines")


@bench.command()
def threads(release: Release, slide: Slide, out: Out, pitch_um: PitchUm = 50.0, rounds: Rounds = 5) -> None:
    """Compare ways to share this CPU's cores between engine and tiler."""
    with needs("loadtest"):
        from m2ost_bench.engines.threads import measure, to_markdown
    report = measure(release, slide, pitch_um=pitch_um, rounds=rounds)
    _write(report, to_markdown(report), out, "engine_threads")


@bench.command()
def dense(
    release: Release,
    slide: Slide,
    out: Out,
    region: Annotated[str | None, typer.Option(help="X,Y,W,H in level-0 pixels; by default the whole slide.")] = None,
    pitch: Annotated[str, typer.Option("--dense", help="Pitch of the map.")] = "16px",
    tolerance: Annotated[list[str], typer.Option(help="As of predict; may be repeated.")] = ["0.25sd", "0.5sd", "1sd"],
    batch_rows: Annotated[int, typer.Option(min=1, help="Positions a batch.")] = 32,
) -> None:
    """Compare dense maps with a tolerance to the exact one: predictions counted, r per gene at every place."""
    with needs("loadtest"), needs("export"):
        from m2ost_bench.istar.refined_map import RefinedMapOptions, measure, to_markdown
        from m2ost_client.refinement import parse_tolerance
    options = RefinedMapOptions(
        release=release,
        slide=slide,
        region=region,
        pitch=pitch,
        tolerances_sd=tuple(map(parse_tolerance, tolerance)),
        batch_rows=batch_rows,
    )
    report = measure(options, _say)
    _write(report, to_markdown(report), out, "dense")


@bench.command()
def tiler(
    release: Release,
    slide: Annotated[Path, typer.Argument(help="A tiled slide that carries µm/px, best with a pyramid.")],
    out: Out,
    pitch_um: PitchUm = 100.0,
    rounds: Rounds = 5,
    drift_spots: Annotated[int, typer.Option(min=2, help="Most spots that lower levels are judged on.")] = 128,
) -> None:
    """Compare the tiler with other libraries, and the way from file to table with its slower half."""
    with needs("loadtest"):
        from m2ost_bench.tiler.measure import measure
        from m2ost_bench.tiler.report import to_markdown
    report = measure(release, slide, pitch_um=pitch_um, drift_spots=drift_spots, rounds=rounds, tell=_say)
    _write(report, to_markdown(report), out, "tiler")


@bench.command()
def archive(
    release: Release,
    slide: Slide,
    out: Out,
    copies: Annotated[int, typer.Option(min=1, help="Slides of the archive: copies of the slide.")] = 20,
    pitch_um: PitchUm = 100.0,
    batch_rows: Annotated[int, typer.Option(min=1, help="Spots a request.")] = 16,
    rounds: Rounds = 3,
    slides: Annotated[int, typer.Option(min=1, help="Projection: slides.")] = 100_000,
    spots_a_slide: Annotated[int, typer.Option(min=1, help="Projection: spots of each.")] = 10_000,
    decoders: Annotated[int, typer.Option(min=1, help="Projection: decoder processes a server.")] = 1,
    gpu_spots_per_s: Annotated[
        float | None, typer.Option(help="Projection: rate of the engine on a GPU; without it the CPU's.")
    ] = None,
    gpu_source: Annotated[str | None, typer.Option(help="Where that rate comes from; goes with it.")] = None,
) -> None:
    """Measure what an archive costs beside its slides, and project what a large one takes."""
    with needs("loadtest"):
        from m2ost_bench.archive.projection import Archive, Server
        from m2ost_bench.archive.speed import SpeedOptions, measure
        from m2ost_bench.archive.speed_report import to_markdown
    options = SpeedOptions(
        release=release,
        slide=slide.resolve(),
        copies=copies,
        rounds=rounds,
        pitch_um=pitch_um,
        batch_rows=batch_rows,
        archive=Archive(slides=slides, spots_a_slide=spots_a_slide),
        server=Server(decoders=decoders, gpu_spots_per_s=gpu_spots_per_s),
        gpu_source=gpu_source,
    )
    report = measure(options)
    _write(report, to_markdown(report), out, "archive")


@bench.command()
def archive_soak(
    release: Release,
    slide: Slide,
    out: Out,
    slides: Annotated[int, typer.Option(min=100, help="Slides of the archive: squares of the slide.")] = 10_000,
) -> None:
    """Score very many very small slides and count: each once, memory flat; use a narrow release of depth 1."""
    with needs("loadtest"):
        from m2ost_bench.archive.soak import measure, to_markdown
    report = measure(release, slide, slides)
    _write(report, to_markdown(report), out, "archive-soak")


@bench.command()
def no_image(
    data: Annotated[list[Path], typer.Argument(help="Folders of HER2+; together all of its sections, images or none.")],
    panel: Annotated[Path, typer.Option(help="The genes, one a line.")],
    out: Out,
) -> None:
    """What two constants score on the authors' split of HER2+: the article's measures beside r per gene."""
    with needs("loadtest"), needs("train"):
        from m2ost.data.her2 import read_without_images
        from m2ost_bench.no_image import measure, to_markdown
    report = measure([section for folder in data for section in read_without_images(folder)], read_genes(panel, 0))
    _write(report, to_markdown(report), out, "no-image-her2")


@bench.command()
def domains(
    data: Annotated[Path, typer.Argument(help="HER2+ with its labels; images are not needed.")],
    out: Out,
) -> None:
    """Compare the domains that each method finds with a pathologist's labels."""
    with needs("loadtest"), needs("domains"):
        from m2ost_bench.domains import measure, to_markdown
    report = measure(data, _say)
    _write(report, to_markdown(report), out, "domains-her2")


@bench.command()
def systems(
    data: Annotated[Path, typer.Argument(help="A data set with images.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of all trainings; the same command goes on in it.")],
    section: Annotated[
        list[str], typer.Option(help="Section that is left out once and else trained on; at least three.")
    ] = ["C2", "C3", "C4", "C5"],
    patient_section: Annotated[
        list[str], typer.Option(help="Section of a patient that is never trained on; may be repeated.")
    ] = ["B4"],
    systems: Annotated[str, typer.Option(help="Names with commas; by default all.")] = "",
    folds: Annotated[str, typer.Option(help="Sections with commas, to train only the folds they are judged in.")] = "",
    recipe: Annotated[str, typer.Option(help="common, published (each its own), or a file.")] = "common",
    epochs: Annotated[int | None, typer.Option(min=1, help="In place of the recipe's.")] = None,
    pretrained: Annotated[list[str], typer.Option(help="SYSTEM=FILE of weights that it starts from.")] = [],
    take: Annotated[
        list[str], typer.Option(help="NAME=CHECKPOINT, a row beside: judged where it has not seen the section.")
    ] = [],
    genes: Annotated[
        Path | None, typer.Option("--genes", help="The panel; by default that of the checkpoint that ships.")
    ] = None,
    counts: Annotated[
        Path | None, typer.Option(help="Further sections of HER2+ without images, for the same-patient mean.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every training.")] = 0,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="M2OST with some levels, and without modules, in place of systems.")
    ] = False,
    speed: Annotated[
        Path | None,
        typer.Option(help="Train nothing: serve every system on this slide and time them in turn, for the table."),
    ] = None,
    pitch_um: PitchUm = 100.0,
    rounds: Rounds = 3,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing: the table of what is there.")
    ] = False,
) -> None:
    """Train every system on the same folds with one recipe, and judge all in one table; goes on after a kill."""
    with needs("loadtest"), needs("train"):
        from m2ost.checkpoint import load
        from m2ost_bench.systems.contestants import ablations as all_ablations
        from m2ost_bench.systems.contestants import all_systems
        from m2ost_bench.systems.measure import measure
        from m2ost_bench.systems.report import to_markdown
        from m2ost_bench.systems.taken import take as taken
        from m2ost_bench.systems.training import SystemsOptions, timed_say
    if ablations and (systems or pretrained):
        raise UserError("--ablations is of M2OST alone, from scratch; leave --systems and --pretrained out")
    files = _files("--pretrained", pretrained)
    with _checkpoint(None) as shipped:
        panel = read_genes(genes, 0) if genes else load(shipped)[1].genes
    options = SystemsOptions(data=data, out=out, recipe=recipe, epochs=epochs, counts=counts, seed=seed)
    contestants = all_ablations() if ablations else all_systems(_names(systems), files)
    if speed:
        _time_systems(options, contestants, panel, speed, pitch_um, rounds)
    report = measure(
        [*contestants, *(taken(name, path) for name, path in _files("--take", take).items())],
        options,
        panel,
        inner=section,
        outer=patient_section,
        only=_names(folds),
        train=not (report_only or speed),
        say=timed_say(_say),
    )
    _write(report, to_markdown(report), out, "ablations" if ablations else "systems")


def _time_systems(options: Any, contestants: Any, panel: Any, slide: Path, pitch_um: float, rounds: int) -> None:
    with needs("export"):
        from m2ost_bench.systems.measure import SPEED
        from m2ost_bench.systems.speed import SpeedOptions, measure_speed
        from m2ost_bench.systems.training import sizes_of
        from m2ost_loadtests.machine import write_report
    settings = {one.name: sizes_of(one, options) for one in contestants}
    wanted = SpeedOptions(slide=slide, pitch_um=pitch_um, rounds=rounds)
    found = measure_speed(settings, panel, options.out, wanted, _say)
    write_report(found, options.out, Path(SPEED).stem)


def _files(option: str, given: list[str]) -> dict[str, Path]:
    """``NAME=FILE`` of an option that may be repeated."""
    pairs = [one.partition("=") for one in given]
    for name, equals, file in pairs:
        if not (name and equals and file):
            raise UserError(f"{option} {name}{equals}{file}: must read NAME=FILE")
    return {name: Path(file) for name, _, file in pairs}


def _names(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


@bench.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def gpu_check(context: typer.Context) -> None:
    """Check a GPU machine: what is computed is right, then how fast; `m2ost bench gpu-check --help` for options."""
    with needs("export"):
        from m2ost_bench.gpu_check.__main__ import main
    raise typer.Exit(main(context.args))


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.add_typer(bench, name="bench")
