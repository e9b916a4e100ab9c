"""A trained checkpoint made ready to be given away: half the size, with its figures in its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..card import ModelCard
from ..checkpoint import load, save
from ..data.section import Section
from ..data.views import ViewCache
from ..weights import CheckpointError
from .judge import SectionReport, evaluate
from .subjects import open_subject


def ship(checkpoint: Path, sections: Sequence[Section], out: Path, cache: ViewCache) -> list[SectionReport]:
    """Write a checkpoint as float16, with its scores on its own validation and test sections in ``model.json``.

    The scores are those of the rounded weights.

    Parameters
    ----------
    checkpoint : Path
        A checkpoint of ``m2ost train``.
    sections : sequence of Section
        The data set it was trained on.
    out : Path
        Folder to create.
    cache : ViewCache

    Returns
    -------
    list of SectionReport
        Of each validation and test section.

    Raises
    ------
    CheckpointError
        If the checkpoint does not say what it was trained on.
    FileExistsError
        If ``out`` exists.
    """
    model, card = load(checkpoint)
    with TemporaryDirectory() as scratch:
        half = Path(scratch) / "half"
        save(half, model, card, half=True)
        subject = open_subject(half, cache)
        split = subject.facts.split
        if split is None:
            raise CheckpointError(f"{checkpoint}: does not say what it was trained on; ship what `m2ost train` made")
        reports = [report for _, _, report in evaluate(subject, sections, split.validation + split.test, split.train)]
    save(out, model, _with_scores(card, reports), half=True)
    return reports


def _with_scores(card: ModelCard, reports: Sequence[SectionReport]) -> ModelCard:
    def rounded(scores: dict[str, float]) -> dict[str, float]:
        return {name: round(value, 6) for name, value in scores.items()}

    figures: dict[str, Any] = {
        report.section: {
            "spots": report.spots,
            "scores": rounded(report.scores),
            "controls": {name: rounded(scores) for name, scores in report.controls.items()},
        }
        for report in reports
    }
    return replace(card, provenance={**card.provenance, "evaluation": figures})
