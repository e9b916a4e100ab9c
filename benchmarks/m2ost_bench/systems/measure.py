"""Every system on every fold, then one table; what is there already is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2ost.checkpoint import read_panel
from m2ost.data.datasets import read_sections
from m2ost.data.errors import DataError
from m2ost.data.her2 import read_without_images
from m2ost.data.panels import write_panel
from m2ost_loadtests.machine import describe_machine, versions

from .contestants import Contestant
from .folds import Fold, make_folds
from .report import assemble
from .taken import judge_taken
from .training import PANEL, RESULT, Say, SystemsOptions, no_image, run_fold

PACKAGES = ("torch", "numpy")
SPEED = "speed.json"
"""What :func:`m2ost_bench.systems.speed.measure_speed` found, where it was asked for."""


def measure(
    contestants: Sequence[Contestant],
    options: SystemsOptions,
    panel: Sequence[str],
    *,
    inner: Sequence[str],
    outer: Sequence[str],
    only: Sequence[str] = (),
    validate: bool = True,
    train: bool = True,
    say: Say,
) -> dict[str, Any]:
    """Train what is missing, and put all into one report.

    Parameters
    ----------
    contestants : sequence of Contestant
        In the order of training.
    options : SystemsOptions
    panel : sequence of str
        Genes.
    inner, outer : sequence of str
        Sections; see :func:`m2ost_bench.systems.folds.make_folds`.
    only : sequence of str
        Folds to train now; by default all.
    validate : bool
        False: keep the last epoch, and train on the section that would choose one.
    train : bool
        False: report what is there.
    say : callable

    Raises
    ------
    DataError
        If a section or fold is unknown, or the folder was made with another panel or other settings.
    """
    wanted = [*inner, *outer]
    sections = {section.name: section for section in read_sections(options.data, wanted)}
    folds = make_folds(list(sections.values()), inner, outer, validate=validate)
    for name in only:
        if name not in {fold.name for fold in folds}:
            raise DataError(f"no fold {name}; there are {', '.join(fold.name for fold in folds)}")
    _keep_panel(options.out / PANEL, panel)
    trained = [contestant for contestant in contestants if contestant.checkpoint is None]
    if train:
        for contestant in trained:
            for fold in folds:
                if not only or fold.name in only:
                    run_fold(contestant, fold, options, sections, say)
    further = read_without_images(options.counts) if options.counts else []
    done = {c.name: _done(c, folds, options, sections, say) for c in trained}
    taken = [contestant for contestant in contestants if contestant.checkpoint is not None]
    done |= {c.name: judge_taken(c, folds, sections, panel, options.views) for c in taken}
    constants = {fold.name: no_image(fold, sections, further, panel) for fold in folds}
    speed = options.out / SPEED
    return {
        "data": options.data.name,
        "recipe": Path(options.recipe).name,
        "ablations": any(contestant.model for contestant in contestants),
        "seed": options.seed,
        "genes": len(panel),
        "machine": describe_machine(),
        "versions": versions(PACKAGES),
        **assemble(contestants, folds, done, constants),
        "speed": json.loads(speed.read_text(encoding="utf-8")) if speed.is_file() else None,
    }


def _done(
    contestant: Contestant, folds: Sequence[Fold], options: SystemsOptions, sections: Any, say: Say
) -> dict[str, Any]:
    """Results that are there, by fold."""
    there = [fold for fold in folds if (options.out / contestant.name / fold.name / RESULT).is_file()]
    return {fold.name: run_fold(contestant, fold, options, sections, say) for fold in there}


def _keep_panel(path: Path, panel: Sequence[str]) -> None:
    """Write the panel, or see that it is the one that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_panel(path, panel)
    elif read_panel(path) != tuple(panel):
        raise DataError(f"{path}: another panel was used there; choose another folder")
