"""Measurements of dense maps and against iStar, ``m2ost bench …``."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from . import panels
from .bench_group import (
    EXIT_UNFAIR,
    MAPS,
    BatchRows,
    Out,
    PitchUm,
    Release,
    Rounds,
    Slide,
    SpotFile,
    measurement,
    say,
    write,
)
from .common import cache_folder, needs, one_of, read_genes
from .numeric import positive
from .scoring_options import Mpp
from .values import size_bytes


@measurement(MAPS)
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
    report = compare(options, say)
    if maps:
        report["refined"] = with_tolerances(report, maps)
    draw(report, write(report, to_markdown(report), out, "istar", ".png").with_suffix(".png"))
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


@measurement(MAPS)
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
    report = measure(options, say)
    write(report, to_markdown(report), out, "dense")
