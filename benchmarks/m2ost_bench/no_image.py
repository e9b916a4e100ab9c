"""What HER2+ scores without an image: two constants, in the article's measures and in r per gene.

The split is that of the authors' code: names sorted, shuffled by Python's generator with seed 1553, the first 70 % to
train. A name that is in the split and not in the data is left out after the shuffle, so that the others stay where they
are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from m2ost import metrics
from m2ost.data.errors import DataError
from m2ost.data.section import Section
from m2ost.evaluation.judge import PATIENT_MEAN, TRAINING_MEAN, constant_predictors

SEED, TRAINING_SHARE = 1553, 0.7
TARGET = "log1p_cpm_panel"
SECTIONS = tuple(
    f"{patient}{i + 1}" for patient, n in zip("ABCDEFGH", (6,) * 4 + (3,) * 4, strict=True) for i in range(n)
)
"""All that the data set has."""


def authors_split() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the sections to train on and to test on, 25 and 11."""
    names = sorted(SECTIONS)
    random.Random(SEED).shuffle(names)
    trained = int(TRAINING_SHARE * len(names))
    return tuple(names[:trained]), tuple(names[trained:])


def measure(sections: Sequence[Section], panel: Sequence[str]) -> dict[str, Any]:
    """Score the constants on the test sections of the authors' split.

    Parameters
    ----------
    sections : sequence of Section
        Of HER2+; those that are missing are named in what is returned.
    panel : sequence of str
        Genes.

    Returns
    -------
    dict
        For JSON. ``r_spot_mean`` is Pearson's r across the genes of a spot and ``rmse_spot_mean`` the root of the mean
        squared error over them, both averaged over all test spots. ``r_gene_in_a_section`` is the mean over genes and
        test sections of r across a section's spots; ``r_gene_pooled`` is the mean over genes of r across all test spots
        together, where a constant of each patient tells patients apart.

    Raises
    ------
    DataError
        If a section is none of HER2+, is there twice, lacks a gene, or a part of the split or a patient's training
        sections are missing altogether.
    """
    names = [section.name for section in sections]
    odd = [name for name in names if name not in SECTIONS or names.count(name) > 1]
    if odd:
        raise DataError(f"section {odd[0]}: is none of HER2+'s {SECTIONS[0]} to {SECTIONS[-1]}, or is there twice")
    known = {section.name: section.expressed(panel, TARGET) for section in sections}
    train, test = ([name for name in part if name in known] for part in authors_split())
    if not train or not test:
        raise DataError(
            f"of the authors' split there are {len(train)} training and {len(test)} test sections; give more"
        )
    training = [known[name] for name in train]
    constants = {name: constant_predictors(known[name], training, training, panel, TARGET) for name in test}
    truth = {name: np.asarray(known[name].targets(panel, TARGET), np.float64) for name in test}
    predictors = {}
    for kind in (TRAINING_MEAN, PATIENT_MEAN):
        lacking = [name for name in test if kind not in constants[name]]
        if lacking:
            raise DataError(f"section {lacking[0]}: no training section of its patient is there; give more")
        values = {name: np.broadcast_to(constants[name][kind], truth[name].shape) for name in test}
        predictors[kind] = _scores(truth, values)
    return {
        "data": "HER2+",
        "split": {"seed": SEED, "training_share": TRAINING_SHARE, "train": train, "test": test},
        "missing": sorted(set(SECTIONS) - set(known)),
        "genes": len(panel),
        "target": TARGET,
        "sections": len(known),
        "spots": sum(map(len, known.values())),
        "test_spots": sum(map(len, truth.values())),
        "predictors": predictors,
    }


def _scores(truth: dict[str, Any], values: dict[str, Any]) -> dict[str, float]:
    whole, predicted = np.concatenate(list(truth.values())), np.concatenate(list(values.values()))
    by_section = [metrics.pearson(truth[name], values[name], 0) for name in truth]
    return {
        "r_spot_mean": float(np.nanmean(metrics.pearson(whole, predicted, 1))),
        "rmse_spot_mean": float(np.sqrt(((whole - predicted) ** 2).mean(axis=1)).mean()),
        "r_gene_in_a_section": float(np.nanmean(np.concatenate(by_section))),
        "r_gene_pooled": float(np.nanmean(metrics.pearson(whole, predicted, 0))),
    }


def to_markdown(report: dict[str, Any]) -> str:
    """The table in words."""
    missing = f", without {', '.join(report['missing'])}" if report["missing"] else ""
    lines = [
        "| no image | PCC a spot, % | RMSE a spot | r per gene in a section | r per gene, all test spots together |",
        "|---|---|---|---|---|",
        *(
            f"| {kind} | {100 * scores['r_spot_mean']:.2f} | {scores['rmse_spot_mean']:.2f} | "
            f"{scores['r_gene_in_a_section']:.2f} | {scores['r_gene_pooled']:.2f} |"
            for kind, scores in report["predictors"].items()
        ),
        "",
        f"{report['spots']:,} spots of {report['sections']} sections{missing}; tested on {report['test_spots']:,} of "
        f"{len(report['split']['test'])}, {report['genes']} genes.",
    ]
    return "\n".join(lines) + "\n"
