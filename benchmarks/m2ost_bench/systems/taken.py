"""Checkpoints that are there, in the same table: judged on the folds whose section they have not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2ost.checkpoint import load
from m2ost.data.errors import DataError
from m2ost.data.section import Section
from m2ost.data.views import ViewCache
from m2ost.evaluation.subjects import open_subject
from m2ost.pretrained import FROM_SCRATCH
from m2ost.systems.registry import system_of, to_dict

from .contestants import Contestant
from .folds import Fold
from .training import DATA_SETTINGS, TARGET, scored


def take(name: str, checkpoint: Path) -> Contestant:
    """A row of a checkpoint's own."""
    return Contestant(name, system_of(load(checkpoint)[1].architecture).name, checkpoint=checkpoint)


def judge_taken(
    contestant: Contestant,
    folds: Sequence[Fold],
    sections: Mapping[str, Section],
    panel: Sequence[str],
    views: Path,
) -> dict[str, Any]:
    """What :func:`m2ost_bench.systems.training.run_fold` gives, of the folds that can be judged, by name.

    Raises
    ------
    DataError
        If the checkpoint does not say what it was trained on, or is of another panel or target.
    """
    assert contestant.checkpoint is not None
    network, card = load(contestant.checkpoint)
    training = card.provenance.get("training", {})
    if "split" not in training or "config" not in training:
        raise DataError(f"{contestant.checkpoint}: does not say what it was trained on; take what `m2ost train` made")
    if card.genes != tuple(panel) or card.target != TARGET:
        raise DataError(f"{contestant.checkpoint}: predicts another panel or target than the table is of")
    config = training["config"]
    data = {name: value for name, value in config["data"].items() if name in DATA_SETTINGS}
    seen = {*training["split"]["train"], *training["split"]["validation"]}
    subject, found = open_subject(contestant.checkpoint, ViewCache(views)), {}
    for fold in folds:
        if fold.name not in seen:
            section = sections[fold.name].expressed(card.genes, TARGET)
            found[fold.name] = {
                "settings": {**config, "data": data, "model": to_dict(card.architecture)},
                "parameters": sum(p.numel() for p in network.parameters()),
                "pretrained": training.get("pretrained", FROM_SCRATCH),
                "best_epoch": training.get("best_epoch"),
                "sha256": card.sha256,
                "training_s": None,
                **scored(fold, section.targets(card.genes, TARGET), subject.predict(section).values),
            }
    return found
