"""Measurements, ``m2ost bench …``: the release, the slide, then options."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from m2ost_contract import MAX_ROWS

from . import panels
from .common import TlsCa, TlsCert, TlsKey, TokenFile, UserError, cache_folder, client_credentials, needs, read_genes
from .numeric import positive
from .progress import working
from .values import named_files, names, one_of, size_bytes

bench = typer.Typer(no_args_is_help=True)

SPEED = "Speed of what is served"
MAPS = "Dense maps and iStar"
ARCHIVES = "Archives"
TRUTH = "Truth on data sets"
MACHINE = "Machine"

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
Mpp = Annotated[
    float | None,
    typer.Option(
        parser=positive,
        metavar="UM",
        help="µm/px of the slide, in place of what the file says.",
        rich_help_panel=panels.SLIDE,
    ),
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


def _measurement(heading: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of ``bench`` that shows how far it is."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(**given: Any) -> None:
            with working(function.__name__.replace("_", "-"), "runs"):
                function(**given)

        bench.command(rich_help_panel=heading)(run)
        return function

    return register


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


@_measurement(MAPS)
def istar(
    release: Release,
    slide: Slide,
    out: Out,
    istar: Annotated[
        Path | None,
        typer.Option(
            help="iStar, as `m2ost export-istar` writes it. By default it has random weights.",
            rich_help_panel=panels.COMPARED,
        ),
    ] = None,
    memory_cap: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Most memory of a system with its decoder, such as 512MiB or 4GiB.",
            rich_help_panel=panels.COMPARED,
        ),
    ] = "2GiB",
    variant: Annotated[
        list[str],
        typer.Option(
            help="Variant of iStar: stock, no_shift or tissue; repeatable. By default all.",
            rich_help_panel=panels.COMPARED,
        ),
    ] = [],
    spots: SpotFile = None,
    pitch_um: PitchUm = 100.0,
    spot_diameter_um: Annotated[
        float,
        typer.Option(parser=positive, metavar="UM", help="Diameter of a spot in µm.", rich_help_panel=panels.SPOTS),
    ] = 100.0,
    mpp: Mpp = None,
    rounds: Rounds = 3,
    sample_batches: Annotated[
        int,
        typer.Option(
            min=0, help="Mini-batches of iStar that a round runs; the time is scaled to the slide. 0 runs all of them."
        ),
    ] = 1,
    served: Annotated[bool, typer.Option(help="Compare both as one Triton serves them, too.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda. On a GPU the cap holds for its allocator.")] = "cpu",
    refined: Annotated[
        Path | None,
        typer.Option(
            help="JSON that `m2ost bench dense` wrote. The report then has the ratios of maps with a tolerance too.",
            rich_help_panel=panels.COMPARED,
        ),
    ] = None,
) -> None:
    """Compare M2OST with iStar on a slide, in turns, under one memory cap.

    Exit status 3: the comparison is not fair.
    """
    with needs("loadtest"), needs("export"):
        from m2ost.complexity import count
        from m2ost.systems.registry import from_dict
        from m2ost_bench.istar.comparison import ComparisonOptions, compare
        from m2ost_bench.istar.comparison_report import draw, to_markdown
        from m2ost_bench.istar.refined_map import read_maps
        from m2ost_bench.istar.speedups import with_tolerances
        from m2ost_contract import Manifest
        from m2ost_istar.geometry import VARIANTS
    for one in variant:
        one_of("--variant", one, VARIANTS)
    one_of("--device", device, ("cpu", "cuda"))
    cap_bytes = size_bytes("--memory-cap", memory_cap)
    maps = read_maps(refined) if refined else None
    options = ComparisonOptions(
        slide=slide,
        release=release,
        istar=istar or _random_istar(),
        flop_per_spot=count(from_dict(Manifest.read(release).architecture)).flop,
        memory_cap_bytes=cap_bytes,
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


@_measurement(SPEED)
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
    server: Annotated[
        str | None,
        typer.Option(
            help="host:port of a running server. By default one runs for this command.", rich_help_panel=panels.SERVER
        ),
    ] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    served_as: Annotated[
        str | None,
        typer.Option(help="With --server: the slide's name there, root/relative/path.", rich_help_panel=panels.SERVER),
    ] = None,
    metrics_url: Annotated[
        str, typer.Option(help="With --server: URL of its metrics.", rich_help_panel=panels.SERVER)
    ] = "",
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
    spots: Annotated[
        int,
        typer.Option(min=1, max=MAX_ROWS, help="Spots in a request of the closed load.", rich_help_panel=panels.LOAD),
    ] = 8,
    load_s: Annotated[
        float,
        typer.Option(
            parser=positive,
            metavar="SECONDS",
            help="Length of the closed load in seconds.",
            rich_help_panel=panels.LOAD,
        ),
    ] = 15.0,
) -> None:
    """Check that a release is served as fast as the thresholds ask, for CI.

    Exit status: 0 it is; 1 requests failed; 3 a threshold was missed; 4 there is no baseline to compare with.
    """
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


@_measurement(SPEED)
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
    with _checkpoint(checkpoint) as source:
        report = measure(
            release, slide, checkpoint=source, pitch_um=pitch_um, rounds=rounds, stream=stream, profile=profile
        )
    _write(report, to_markdown(report), out, "served_vs_bare")


def _stream(batch_rows: int | None, window: int | None) -> Any:
    from m2ost_client.stream import StreamOptions

    default = StreamOptions()
    return StreamOptions(batch_rows=batch_rows or default.batch_rows, window=window or default.window)


@_measurement(SPEED)
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
    _write(report, to_markdown(report), out, "soak")


@_measurement(SPEED)
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


@_measurement(SPEED)
def threads(release: Release, slide: Slide, out: Out, pitch_um: PitchUm = 50.0, rounds: Rounds = 5) -> None:
    """Compare ways to share the cores of this CPU between engine and tiler."""
    with needs("loadtest"):
        from m2ost_bench.engines.threads import measure, to_markdown
    report = measure(release, slide, pitch_um=pitch_um, rounds=rounds)
    _write(report, to_markdown(report), out, "engine_threads")


@_measurement(MAPS)
def dense(
    release: Release,
    slide: Slide,
    out: Out,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,W,H",
            help="Map only this rectangle, in level-0 pixels. By default the whole slide.",
            rich_help_panel=panels.DENSE,
        ),
    ] = None,
    pitch: Annotated[
        str,
        typer.Option(
            "--dense",
            metavar="PITCH",
            help="Pitch of the map in level-0 pixels, such as 16px.",
            rich_help_panel=panels.DENSE,
        ),
    ] = "16px",
    tolerance: Annotated[
        list[str],
        typer.Option(
            metavar="SD",
            help="Tolerance in standard deviations, such as 0.5sd; repeatable.",
            rich_help_panel=panels.DENSE,
        ),
    ] = ["0.25sd", "0.5sd", "1sd"],
    batch_rows: BatchRows = 32,
) -> None:
    """Compare dense maps with a tolerance to the exact map: predictions, and r per gene."""
    with needs("loadtest"), needs("export"):
        from m2ost_bench.istar.refined_map import RefinedMapOptions, measure, to_markdown
        from m2ost_client.refinement import parse_tolerance
        from m2ost_preprocess.slides.dense_grid import parse_pitch
        from m2ost_preprocess.slides.rectangle import Rectangle
    parse_pitch(pitch)
    if region is not None:
        Rectangle.parse(region)
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


@_measurement(SPEED)
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
    report = measure(release, slide, pitch_um=pitch_um, drift_spots=drift_spots, rounds=rounds, tell=_say)
    _write(report, to_markdown(report), out, "tiler")


@_measurement(ARCHIVES)
def archive(
    release: Release,
    slide: Slide,
    out: Out,
    copies: Annotated[
        int, typer.Option(min=1, help="Number of slides in the archive. Each is a copy of the slide.")
    ] = 20,
    pitch_um: PitchUm = 100.0,
    batch_rows: BatchRows = 16,
    rounds: Rounds = 3,
    slides: Annotated[int, typer.Option(min=1, help="Number of slides.", rich_help_panel=panels.PROJECTION)] = 100_000,
    spots_a_slide: Annotated[
        int, typer.Option(min=1, help="Number of spots on each slide.", rich_help_panel=panels.PROJECTION)
    ] = 10_000,
    decoders: Annotated[
        int,
        typer.Option(min=1, help="Number of decoder processes of each server.", rich_help_panel=panels.PROJECTION),
    ] = 1,
    gpu_spots_per_s: Annotated[
        float | None,
        typer.Option(
            parser=positive,
            metavar="RATE",
            help="Spots/s of the engine on a GPU, as you measured it. By default the rate of this CPU.",
            rich_help_panel=panels.PROJECTION,
        ),
    ] = None,
    gpu_source: Annotated[
        str | None,
        typer.Option(
            help="Where that rate comes from. It is required with --gpu-spots-per-s.",
            rich_help_panel=panels.PROJECTION,
        ),
    ] = None,
) -> None:
    """Measure what an archive costs beyond its single slides, and project a large archive from it."""
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


@_measurement(ARCHIVES)
def archive_soak(
    release: Release,
    slide: Slide,
    out: Out,
    slides: Annotated[
        int, typer.Option(min=100, help="Number of slides in the archive. Each is a square cut out of the slide.")
    ] = 10_000,
) -> None:
    """Score thousands of tiny slides, check that each is scored once, and watch the memory.

    Use a narrow release of depth 1, so that it takes minutes and not days.
    """
    with needs("loadtest"):
        from m2ost_bench.archive.soak import measure, to_markdown
    report = measure(release, slide, slides)
    _write(report, to_markdown(report), out, "archive-soak")


@_measurement(TRUTH)
def no_image(
    data: Annotated[
        list[Path],
        typer.Argument(help="Folders of HER2+ that together hold all of its sections. Images are not needed."),
    ],
    panel: Annotated[Path, typer.Option("--panel", help="Gene panel, one name a line.")],
    out: Out,
) -> None:
    """Measure what two constant predictions score on the authors' split of HER2+."""
    with needs("loadtest"), needs("train"):
        from m2ost.data.her2 import read_without_images
        from m2ost_bench.no_image import measure, to_markdown
    report = measure([section for folder in data for section in read_without_images(folder)], read_genes(panel, 0))
    _write(report, to_markdown(report), out, "no-image-her2")


@_measurement(TRUTH)
def domains(
    data: Annotated[Path, typer.Argument(help="Folder of HER2+ with its labels. Images are not needed.")],
    out: Out,
) -> None:
    """Compare the domains that each method finds with the labels of a pathologist."""
    with needs("loadtest"), needs("domains"):
        from m2ost_bench.domains import measure, to_markdown
    report = measure(data, _say)
    _write(report, to_markdown(report), out, "domains-her2")


@_measurement(TRUTH)
def systems(
    data: Annotated[Path, typer.Argument(help="Folder of a data set with images.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder of all trainings. After a kill, the same command goes on in it.",
            rich_help_panel=panels.OUTPUT,
        ),
    ],
    section: Annotated[
        list[str],
        typer.Option(
            help="Section that one fold leaves out and the others train on; give at least three.",
            rich_help_panel=panels.DATA,
        ),
    ] = ["C2", "C3", "C4", "C5"],
    patient_section: Annotated[
        list[str],
        typer.Option(help="Section of a patient that no fold trains on; repeatable.", rich_help_panel=panels.DATA),
    ] = ["B4"],
    folds: Annotated[
        str,
        typer.Option(
            help="Train only the folds that leave these sections out, names with commas. By default all.",
            rich_help_panel=panels.DATA,
        ),
    ] = "",
    counts: Annotated[
        Path | None,
        typer.Option(
            help="Folder of further sections of HER2+ without images, for the mean over the same patient.",
            rich_help_panel=panels.DATA,
        ),
    ] = None,
    panel_file: Annotated[
        Path | None,
        typer.Option(
            "--panel",
            help="Gene panel, one name a line. By default that of the checkpoint that ships.",
            rich_help_panel=panels.DATA,
        ),
    ] = None,
    systems: Annotated[
        str,
        typer.Option(help="Systems to train, names with commas. By default all.", rich_help_panel=panels.COMPARED),
    ] = "",
    ablations: Annotated[
        bool,
        typer.Option(
            "--ablations",
            help="Compare M2OST with some of its levels, and without modules, in place of systems.",
            rich_help_panel=panels.COMPARED,
        ),
    ] = False,
    pretrained: Annotated[
        list[str],
        typer.Option(
            metavar="SYSTEM=FILE",
            help="Weights that a system starts from; repeatable.",
            rich_help_panel=panels.COMPARED,
        ),
    ] = [],
    take: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=CHECKPOINT",
            help="Compare this checkpoint too, on sections that it was not trained on; repeatable.",
            rich_help_panel=panels.COMPARED,
        ),
    ] = [],
    recipe: Annotated[str, typer.Option(help="common, published (each system's own), or a file.")] = "common",
    epochs: Annotated[int | None, typer.Option(min=1, help="Number of epochs, in place of the recipe's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every training.")] = 0,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing, and write the table of what is there.")
    ] = False,
    speed: Annotated[
        Path | None,
        typer.Option(help="Train nothing. Serve every system on this slide in turn, and add their speed to the table."),
    ] = None,
    pitch_um: PitchUm = 100.0,
    rounds: Rounds = 3,
) -> None:
    """Train every system on the same folds with one recipe, and compare all in one table."""
    with needs("loadtest"), needs("train"):
        from m2ost.checkpoint import load
        from m2ost.training.recipes import read_recipe
        from m2ost_bench.systems.contestants import PUBLISHED, all_systems
        from m2ost_bench.systems.contestants import ablations as all_ablations
        from m2ost_bench.systems.measure import measure
        from m2ost_bench.systems.report import to_markdown
        from m2ost_bench.systems.taken import take as taken
        from m2ost_bench.systems.training import SystemsOptions, timed_say
    if ablations and (systems or pretrained):
        raise UserError("--ablations is of M2OST alone, from scratch; leave --systems and --pretrained out")
    if recipe != PUBLISHED:
        read_recipe(recipe)
    files = {name: Path(file) for name, file in named_files("--pretrained", pretrained).items()}
    others = named_files("--take", take)
    with _checkpoint(None) as shipped:
        panel = read_genes(panel_file, 0) if panel_file else load(shipped)[1].genes
    options = SystemsOptions(data=data, out=out, recipe=recipe, epochs=epochs, counts=counts, seed=seed)
    contestants = all_ablations() if ablations else all_systems(names(systems), files)
    if speed:
        _time_systems(options, contestants, panel, speed, pitch_um, rounds)
    report = measure(
        [*contestants, *(taken(name, Path(path)) for name, path in others.items())],
        options,
        panel,
        inner=section,
        outer=patient_section,
        only=names(folds),
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
