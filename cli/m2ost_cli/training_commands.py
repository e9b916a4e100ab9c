"""Commands that make and judge checkpoints: ``split``, ``panel``, ``train``, ``evaluate``, ``ship``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from . import panels
from .common import UserError, needs, one_of
from .progress import progress
from .values import triple
from .values import view_mpp as view_mpp_of

Root = Annotated[Path, typer.Option("--data", help="Folder of the data set.", rich_help_panel=panels.DATA)]
Layout = Annotated[
    str,
    typer.Option(
        help="Layout of the data set: her2, hbc, cscc, visium or hest. auto tells it from the files.",
        rich_help_panel=panels.DATA,
    ),
]
Views = Annotated[
    Path,
    typer.Option("--cache", help="Folder that keeps the views, 441 KiB a spot.", rich_help_panel=panels.DATA),
]


def split(
    data: Root,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write (YAML). With --leave-one-out, a folder.")],
    layout: Layout = "auto",
    by: Annotated[
        str, typer.Option(help="section or patient. By patient, all sections of a patient stay together.")
    ] = "patient",
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Write one split for each section or patient.")
    ] = False,
    shares: Annotated[
        str, typer.Option(help="Shares of training, validation and test, with commas between them.")
    ] = "0.6,0.1,0.3",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same split.")] = 0,
) -> None:
    """Split the sections of a data set for `m2ost train --split`."""
    with needs("train"):
        from m2ost.data import splits
        from m2ost.data.datasets import LAYOUTS, read_sections
    one_of("--by", by, ("section", "patient"))
    one_of("--layout", layout, ("auto", *LAYOUTS))
    parts = triple("--shares", shares)
    if min(parts) <= 0:
        raise UserError(f"--shares {shares}: give three numbers above 0, such as 0.6,0.1,0.3")
    sections = read_sections(data, layout=layout)
    if leave_one_out:
        out.mkdir(parents=True, exist_ok=True)
        for one in splits.leave_one_out(sections, by=by):
            one.write(out / f"{'+'.join(one.test)}.yaml")
        print(f"{out}: {len(sections)} sections, one split for each {by}")
        return
    one = splits.split_sections(sections, by=by, shares=parts, seed=seed)
    one.write(out)
    print(f"{out}: train {', '.join(one.train)}; validation {', '.join(one.validation)}; test {', '.join(one.test)}")


def panel(
    data: Root,
    split_file: Annotated[
        Path, typer.Option("--split", help="Split file. Genes are chosen on its training sections only.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, one gene a line.")],
    layout: Layout = "auto",
    size: Annotated[int, typer.Option(min=1, help="Number of genes.")] = 250,
) -> None:
    """Choose a panel of highly variable genes from a data set."""
    with needs("train"):
        from m2ost.data.datasets import LAYOUTS, read_sections
        from m2ost.data.panels import select_panel, write_panel
        from m2ost.data.splits import read_split
    one_of("--layout", layout, ("auto", *LAYOUTS))
    names = read_split(split_file).train
    genes = select_panel(read_sections(data, names, layout), size)
    write_panel(out, genes)
    print(f"{out}: {len(genes)} genes, {', '.join(genes[:5])} …; chosen on {', '.join(names)}")


def train(
    config: Annotated[Path, typer.Argument(help="Settings of the run (YAML).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run. A run that was killed goes on in it.")],
    settings: Annotated[
        list[str], typer.Option("--set", help="Change a setting, as field=value, such as optim.epochs=10; repeatable.")
    ] = [],
    split_file: Annotated[
        Path | None, typer.Option("--split", help="Take the split from this file of `m2ost split`.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe for what the settings leave open: common, a system's name (as published), or a file."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. By default a GPU is used if there is one.")] = None,
) -> None:
    """Train a network on a data set, and write its checkpoint.

    On several GPUs, run `torchrun --nproc-per-node N --no-python m2ost train …`.
    """
    with needs("train"):
        from m2ost.data.splits import read_split
        from m2ost.training.config import config_from, read_settings
        from m2ost.training.recipes import with_recipe
        from m2ost.training.run import train as run
    one_of("--device", device, ("cpu", "cuda"))
    overrides = list(settings)
    if split_file is not None:
        overrides += [f"split.{part}={names}" for part, names in read_split(split_file).to_dict().items()]
    raw = read_settings(config, overrides)
    chosen = config_from(with_recipe(raw, recipe) if recipe else raw, str(config))
    with progress("training", "epochs") as update:

        def report(row: Mapping[str, float]) -> None:
            validated = row.get("validation_r_gene_mean")
            figures = f"loss {row['train_loss']:.3f}" + (
                f", r per gene {validated:.3f}" if validated is not None else ""
            )
            update(int(row["epoch"]), chosen.optim.epochs, figures)

        update(0, chosen.optim.epochs)
        checkpoint = run(chosen, out, device=device, report=report)
    print(f"{checkpoint}: trained; `m2ost evaluate {checkpoint} --data {chosen.data.root}` says how well")


def evaluate(
    subject: Annotated[Path, typer.Argument(help="Checkpoint, release, .onnx file, or .h5ad of `m2ost predict`.")],
    data: Root,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder for evaluation.json, evaluation.md and figures.",
            rich_help_panel=panels.OUTPUT,
        ),
    ],
    section: Annotated[
        list[str], typer.Option(help="Section to judge on; repeatable.", rich_help_panel=panels.DATA)
    ] = [],
    train_section: Annotated[
        list[str],
        typer.Option(
            help="Section that the subject was trained on, if it does not say so; repeatable.",
            rich_help_panel=panels.DATA,
        ),
    ] = [],
    layout: Layout = "auto",
    panel_file: Annotated[
        Path | None, typer.Option("--panel", help="Gene panel of a bare .onnx file, one name a line.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Unit of its values, if it does not say so: log1p_cpm_panel or log1p_cpm_total."),
    ] = None,
    view_mpp: Annotated[
        str | None,
        typer.Option(
            metavar="UM|model",
            help="µm/px of the finest view, or model. By default that of its training, or else the image's.",
        ),
    ] = None,
    map_gene: Annotated[
        list[str],
        typer.Option("--map", help="Draw a map of this gene; repeatable.", rich_help_panel=panels.OUTPUT),
    ] = ["DDX5"],
    cache: Views = Path("build/views"),
) -> None:
    """Compare predictions with measured expression, and with predictors that see no image."""
    with needs("train"):
        from m2ost.checkpoint import read_panel
        from m2ost.data.datasets import LAYOUTS, read_sections
        from m2ost.data.views import ViewCache
        from m2ost.evaluation import figures
        from m2ost.evaluation.judge import evaluate as judge_all
        from m2ost.evaluation.report import to_json, to_markdown
        from m2ost.evaluation.subjects import open_subject
    one_of("--layout", layout, ("auto", *LAYOUTS))
    one = open_subject(
        subject, ViewCache(cache), read_panel(panel_file) if panel_file else None, target, view_mpp_of(view_mpp)
    )
    known = one.facts.split
    trained_on = train_section or list(known.train if known else ())
    judged = section or list(known.validation + known.test if known else ())
    if not judged:
        raise UserError(f"{subject}: does not say what it was trained on; name a section to judge with --section")
    results = judge_all(one, read_sections(data, layout=layout), judged, trained_on)
    out.mkdir(parents=True, exist_ok=True)
    for place, prediction, _ in results:
        truth = place.targets(prediction.genes, one.facts.target)
        figures.draw_components(place, truth, prediction.values, out / f"{place.name}_components.png")
        for gene in set(map_gene) & set(prediction.genes):
            column = prediction.genes.index(gene)
            figures.draw_gene(
                place, truth[:, column], prediction.values[:, column], gene, out / f"{place.name}_{gene}.png"
            )
    reports = [report for _, _, report in results]
    text = to_markdown(one.facts.name, reports, trained_on)
    (out / "evaluation.json").write_text(to_json(one.facts.name, reports, trained_on), encoding="utf-8")
    (out / "evaluation.md").write_text(text, encoding="utf-8")
    print(text)


def ship(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint that `m2ost train` wrote.")],
    data: Root,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to create. It is never overwritten.")],
    layout: Layout = "auto",
    cache: Views = Path("build/views"),
) -> None:
    """Make a checkpoint to give away: in float16, with its scores in its card.

    The scores are those on its validation and test sections.
    """
    with needs("train"):
        from m2ost.data.datasets import LAYOUTS, read_sections
        from m2ost.data.views import ViewCache
        from m2ost.evaluation.ship import ship as ship_checkpoint
    one_of("--layout", layout, ("auto", *LAYOUTS))
    for report in ship_checkpoint(checkpoint, read_sections(data, layout=layout), out, ViewCache(cache)):
        print(f"{out}: {report.section}, r per gene {report.scores['r_gene_mean']:.3f} over {report.spots} spots")
