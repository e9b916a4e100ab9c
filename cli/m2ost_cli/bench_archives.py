"""Measurements of archives, ``m2ost bench …``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import panels
from .bench_group import ARCHIVES, BatchRows, Out, PitchUm, Release, Rounds, Slide, measurement, write
from .common import needs
from .numeric import positive


@measurement(ARCHIVES)
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
    write(report, to_markdown(report), out, "archive")


@measurement(ARCHIVES)
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
    write(report, to_markdown(report), out, "archive-soak")
