"""Commands that make and judge checkpoints: ``split``, ``panel``, ``train``, ``evaluate``, ``ship``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import UserError, needs

Root = Annotated[Path, typer.Option("--data", help="The data set's folder.")]
Layout = Annotated[str, typer.Option(help="Its layout: her2, hbc, cscc, visium, hest; auto tells by the files.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU where there is one.")]


def split(
    data: Root,
    out: Annotated[Path, typer.Option("--out", help="File to write (YAML); a folder with --leave-one-out.")],
    layout: Layout = "auto",
    by: Annotated[str, typer.Option(help="section or patient: a patient's sections stay together.")] = "patient",
    leave_one_out: Annotated[bool, typer.Option("--leave-one-out", help="One split a section or patient.")] = False,
    shares: Annotated[str, typer.Option(help="Train, validation, test.")] = "0.6,0.1,0.3",
    seed: Annotated[int, typer.Option(help="One seed gives one split.")] = 0,
) -> None:
    """Split a data set's sections, for `m2ost train --split`."""
    with needs("train"):
        from m2ost.data import splits
        from m2ost.data.datasets import read_sections
    sections = read_sections(data, layout=layout)
    if leave_one_out:
        out.mkdir(parents=True, exist_ok=True)
        for one in splits.leave_one_out(sections, by=by):
            one.write(out / f"{'+'.join(one.test)}.yaml")
        print(f"{out}: {len(sections)} sections, one split for each {by}")
        return
    try:
        parts = [float(share) for share in shares.split(",")]
    except ValueError:
        parts = []
    if len(parts) != 3 or min(parts) <= 0:
        raise UserError(f"--shares {shares}: three positive numbers are needed, such as 0.6,0.1,0.3")
    one = splits.split_sections(sections, by=by, shares=parts, seed=seed)
    one.write(out)
    print(f"{out}: train {', '.join(one.train)}; validation {', '.join(one.validation)}; test {', '.join(one.test)}")


def panel(
    data: Root,
    split_file: Annotated[Path, typer.Option("--split", help="Genes are chosen on its training sections only.")],
    out: Annotated[Path, typer.Option("--out", help="File to write: one gene a line.")],
    layout: Layout = "auto",
    size: Annotated[int, typer.Option(help="Number of genes.")] = 250,
) -> None:
    """Choose a panel of highly variable genes."""
    with needs("train"):
        from m2ost.data.datasets import read_sections
        from m2ost.data.panels import select_panel, write_panel
        from m2ost.data.splits import read_split
    names = read_split(split_file).train
    genes = select_panel(read_sections(data, names, layout), size)
    write_panel(out, genes)
    print(f"{out}: {len(genes)} genes, {', '.join(genes[:5])} …; chosen on {', '.join(names)}")


def train(
    config: Annotated[Path, typer.Argument(help="The run's settings (YAML).")],
    out: Annotated[Path, typer.Option("--out", help="The run's folder; a run that was killed goes on in it.")],
    settings: Annotated[list[str], typer.Option("--set", help="field=value, such as optim.epochs=10.")] = [],
    split_file: Annotated[Path | None, typer.Option("--split", help="Take the split from this file.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="What the settings leave open: common, a system's name (as published), or a file."),
    ] = None,
    device: Device = None,
) -> None:
    """Train a checkpoint; several GPUs through `torchrun --nproc-per-node N --no-python m2ost train …`."""
    with needs("train"):
        from m2ost.data.splits import read_split
        from m2ost.training.config import config_from, read_settings
        from m2ost.training.recipes import with_recipe
        from m2ost.training.run import train as run
    overrides = list(settings)
    if split_file is not None:
        overrides += [f"split.{part}={names}" for part, names in read_split(split_file).to_dict().items()]
    raw = read_settings(config, overrides)
    chosen = config_from(with_recipe(raw, recipe) if recipe else raw, str(config))
    with _progress(chosen.optim.epochs) as report:
        checkpoint = run(chosen, out, device=device, report=report)
    print(f"{checkpoint}: trained; `m2ost evaluate {checkpoint} --data {chosen.data.root}` says how well")


def evaluate(
    subject: Annotated[Path, typer.Argument(help="A checkpoint, a release, an .onnx file, or an .h5ad of predict.")],
    data: Root,
    out: Annotated[Path, typer.Option("--out", help="Folder for evaluation.json, evaluation.md and figures.")],
    section: Annotated[list[str], typer.Option(help="Section to judge on; may be repeated.")] = [],
    train_section: Annotated[
        list[str], typer.Option(help="Section it was trained on, where the subject does not say so.")
    ] = [],
    layout: Layout = "auto",
    genes: Annotated[Path | None, typer.Option("--genes", help="Gene panel of a bare .onnx file.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="What its values are, where it does not say so: log1p_cpm_panel or log1p_cpm_total."),
    ] = None,
    view_mpp: Annotated[
        str | None,
        typer.Option(help="µm/px of the finest view, or model; by default as in training, else the image's."),
    ] = None,
    map_gene: Annotated[list[str], typer.Option("--map", help="Gene to draw; may be repeated.")] = ["DDX5"],
    cache: Annotated[Path, typer.Option(help="Folder for the views, 441 KiB a spot.")] = Path("build/views"),
) -> None:
    """Judge predictions against measured expression, beside predictors that see no image."""
    with needs("train"):
        from m2ost.checkpoint import read_panel
        from m2ost.data.datasets import read_sections
        from m2ost.data.views import ViewCache
        from m2ost.evaluation import figures
        from m2ost.evaluation.judge import evaluate as judge_all
        from m2ost.evaluation.report import to_json, to_markdown
        from m2ost.evaluation.subjects import open_subject
    one = open_subject(subject, ViewCache(cache), read_panel(genes) if genes else None, target, _mpp(view_mpp))
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


def _mpp(text: str | None) -> float | str | None:
    """``--view-mpp`` as a number, where it is one."""
    if text in (None, "model"):
        return text
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"--view-mpp {text}: a number of µm/px is needed, or model") from error


def ship(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of `m2ost train`.")],
    data: Root,
    out: Annotated[Path, typer.Option("--out", help="Folder to create; never overwritten.")],
    layout: Layout = "auto",
    cache: Annotated[Path, typer.Option(help="Folder for the views, 441 KiB a spot.")] = Path("build/views"),
) -> None:
    """Store a checkpoint as float16, with its scores on its validation and test sections in its card."""
    with needs("train"):
        from m2ost.data.datasets import read_sections
        from m2ost.data.views import ViewCache
        from m2ost.evaluation.ship import ship as ship_checkpoint
    for report in ship_checkpoint(checkpoint, read_sections(data, layout=layout), out, ViewCache(cache)):
        print(f"{out}: {report.section}, r per gene {report.scores['r_gene_mean']:.3f} over {report.spots} spots")


class _progress:
    """A progress bar over epochs, with the figures of the last."""

    def __init__(self, epochs: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns)
        self._task = self._bar.add_task("training", total=epochs)

    def __enter__(self) -> Any:
        self._bar.start()
        return self._report

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def _report(self, row: Mapping[str, float]) -> None:
        figures = f"loss {row['train_loss']:.3f}, r per gene {row['validation_r_gene_mean']:.3f}"
        self._bar.update(self._task, completed=int(row["epoch"]), description=figures)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (split, panel, train, evaluate, ship):
        app.command()(command)
