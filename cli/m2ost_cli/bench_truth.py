"""Measurements of truth on data sets, ``m2ost bench …``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import panels
from .bench_group import TRUTH, Out, PitchUm, Rounds, checkpoint_or_shipped, measurement, say, write
from .common import UserError, needs, read_genes
from .values import named_files, names


@measurement(TRUTH)
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
    write(report, to_markdown(report), out, "no-image-her2")


@measurement(TRUTH)
def domains(
    data: Annotated[Path, typer.Argument(help="Folder of HER2+ with its labels. Images are not needed.")],
    out: Out,
) -> None:
    """Compare the domains that each method finds with the labels of a pathologist."""
    with needs("loadtest"), needs("domains"):
        from m2ost_bench.domains import measure, to_markdown
    report = measure(data, say)
    write(report, to_markdown(report), out, "domains-her2")


@measurement(TRUTH)
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
    keep_last: Annotated[
        bool,
        typer.Option(
            "--keep-last",
            help="Train on all other sections and keep the last epoch; by default one of them chooses the epoch.",
        ),
    ] = False,
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
    with checkpoint_or_shipped(None) as shipped:
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
        validate=not keep_last,
        train=not (report_only or speed),
        say=timed_say(say),
    )
    write(report, to_markdown(report), out, "ablations" if ablations else "systems")


def _time_systems(options: Any, contestants: Any, panel: Any, slide: Path, pitch_um: float, rounds: int) -> None:
    with needs("export"):
        from m2ost_bench.systems.measure import SPEED
        from m2ost_bench.systems.speed import SpeedOptions, measure_speed
        from m2ost_bench.systems.training import sizes_of
        from m2ost_loadtests.machine import write_report
    settings = {one.name: sizes_of(one, options) for one in contestants}
    wanted = SpeedOptions(slide=slide, pitch_um=pitch_um, rounds=rounds)
    found = measure_speed(settings, panel, options.out, wanted, say)
    write_report(found, options.out, Path(SPEED).stem)
