"""Train each system on each fold, or go on where a run was stopped, and judge it on the fold's section.

A folder a system holds a folder a fold: the run's own files, then ``result.json``, whole or absent. That file alone is
enough for the table, on any machine.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from m2ost import metrics
from m2ost.checkpoint import load
from m2ost.data.errors import DataError
from m2ost.data.section import TARGETS, Section
from m2ost.data.splits import Split
from m2ost.data.views import ViewCache
from m2ost.evaluation.judge import constant_predictors
from m2ost.evaluation.subjects import open_subject
from m2ost.training.config import TrainConfig, config_from
from m2ost.training.loop import STATE
from m2ost.training.recipes import with_recipe
from m2ost.training.run import CHECKPOINT, train
from m2ost_contract import complete_file, sha256_file

from .contestants import Contestant
from .folds import Fold

RESULT, PANEL = "result.json", "panel.txt"
DATA_SETTINGS = ("target", "view_mpp")
"""Those of ``data`` that are no folders."""
TARGET = TARGETS[0]
STATE_EVERY_S = 300.0

ROUNDS = 500
"""Bootstrap draws of the spots of a section. Every system is scored on the same draws."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SystemsOptions:
    """What is compared.

    Parameters
    ----------
    data : Path
        Folder of the data set.
    out : Path
        Receives a folder a system, with one a fold in it.
    recipe : str
        ``common``, ``published``, or a file.
    epochs : int, optional
        In place of the recipe's.
    counts : Path, optional
        Folder of further sections without images, for the same-patient mean.
    seed : int
    """

    data: Path
    out: Path
    recipe: str
    epochs: int | None = None
    counts: Path | None = None
    seed: int = 0

    @property
    def views(self) -> Path:
        """Folder for the views."""
        return self.out / "views"


def settings(contestant: Contestant, fold: Fold, options: SystemsOptions) -> TrainConfig:
    """Of a training.

    Raises
    ------
    ConfigError
        If the recipe cannot be used for that system.
    """
    raw: dict[str, Any] = {
        "data": {"root": str(options.data), "panel": str(options.out / PANEL), "cache": str(options.views)},
        "split": fold.split.to_dict(),
        "model": {"name": contestant.system, **contestant.model},
        "seed": options.seed,
    }
    raw["data"]["target"] = TARGET
    if contestant.pretrained is not None:
        raw["pretrained"] = str(contestant.pretrained)
    if options.epochs is not None:
        raw["optim"] = {"epochs": options.epochs}
    return config_from(with_recipe(raw, contestant.recipe(options.recipe)), f"{contestant.name}, fold {fold.name}")


def sizes_of(contestant: Contestant, options: SystemsOptions) -> TrainConfig:
    """The same of no fold: for what does not depend on the sections."""
    return settings(contestant, Fold("-", "", Split(train=("-",), validation=("--",))), options)


def run_fold(
    contestant: Contestant, fold: Fold, options: SystemsOptions, sections: Mapping[str, Section], say: Say
) -> dict[str, Any]:
    """What came of a fold: read where it is there, else trained and judged, going on where a run was stopped.

    Parameters
    ----------
    contestant : Contestant
    fold : Fold
    options : SystemsOptions
    sections : mapping
        The data set's sections by name.
    say : callable
        Told of each epoch, and of the result.

    Raises
    ------
    DataError
        If the folder's result was made with other settings.
    """
    folder = options.out / contestant.name / fold.name
    config = settings(contestant, fold, options)
    told = without_paths(config)
    if (folder / RESULT).is_file():
        found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if found["settings"] != told:
            raise DataError(f"{folder / RESULT}: was made with other settings; choose another folder")
        return found
    checkpoint = folder / CHECKPOINT
    if not checkpoint.exists():
        spots = sum(len(sections[name]) for name in fold.split.train)
        say(f"{contestant.name}, fold {fold.name}: {config.optim.epochs} epochs of {spots} spots")

        def report(row: Mapping[str, float]) -> None:
            validated = row.get("validation_r_gene_mean")
            say(
                f"{contestant.name}, fold {fold.name}: epoch {int(row['epoch'])} of {config.optim.epochs}, loss "
                f"{row['train_loss']:.4f}, "
                + (f"validation r per gene {validated:.4f}, " if validated is not None else "")
                + f"{spots / row['seconds']:.2f} spots/s"
            )

        train(config, folder, device="cpu", report=report, state_every_s=STATE_EVERY_S)
    network, card = load(checkpoint)
    training = card.provenance["training"]
    section = sections[fold.name].expressed(card.genes, TARGET)
    predicted = open_subject(checkpoint, ViewCache(options.views)).predict(section).values
    result = {
        "settings": told,
        "parameters": sum(p.numel() for p in network.parameters()),
        "pretrained": training["pretrained"],
        "best_epoch": training["best_epoch"],
        "sha256": card.sha256,
        "training_s": _seconds(folder),
        **scored(fold, section.targets(card.genes, TARGET), predicted),
    }
    with complete_file(folder / RESULT) as scratch:
        scratch.write_text(json.dumps(result) + "\n", encoding="utf-8")
    (folder / STATE).unlink(missing_ok=True)
    say(f"{contestant.name}, fold {fold.name}: r per gene {result['scores']['r_gene_mean']:.4f}")
    return result


def without_paths(config: TrainConfig) -> dict[str, Any]:
    """Settings as JSON has them, the same on every machine: of files sha256, no folders."""
    told: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    told["data"] = {name: told["data"][name] for name in DATA_SETTINGS}
    for name, file in (("panel", config.data.panel), ("pretrained", config.pretrained)):
        told[name] = sha256_file(Path(file)) if file else None
    return told


def _seconds(folder: Path) -> float:
    """Seconds of all epochs by the clock."""
    lines = (folder / "log.csv").read_text(encoding="utf-8").splitlines()
    column = lines[0].split(",").index("seconds")
    return sum(float(line.split(",")[column]) for line in lines[1:])


def scored(fold: Fold, truth: Any, predicted: Any) -> dict[str, Any]:
    """Measures of a prediction, and of each bootstrap draw of its spots: ``scores`` and ``draws``, by measure."""
    drawn = metrics.draws(truth, predicted, rounds=ROUNDS, seed=zlib.crc32(fold.name.encode()))
    return {
        "spots": len(truth),
        "scores": metrics.score(truth, predicted),
        "draws": {name: [round(s[name], 6) for s in drawn] for name in metrics.MEASURES},
    }


def no_image(fold: Fold, sections: Mapping[str, Section], further: Sequence[Section], panel: Sequence[str]) -> Any:
    """The same of the predictors that see no image, by name: of the training mean, and of the same patient's."""
    known = {section.name: section for section in further} | dict(sections)
    expressed = {name: section.expressed(panel, TARGET) for name, section in known.items()}
    section = expressed[fold.name]
    train_sections = [expressed[name] for name in fold.split.train]
    constants = constant_predictors(section, train_sections, list(expressed.values()), panel, TARGET)
    truth = section.targets(panel, TARGET)
    return {name: scored(fold, truth, np.broadcast_to(vector, truth.shape)) for name, vector in constants.items()}


def timed_say(say: Say) -> Say:
    """The same with the time of day."""
    return lambda words: say(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}")
