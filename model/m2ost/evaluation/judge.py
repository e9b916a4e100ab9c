"""Judge predictions section by section, beside predictors that see no image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import metrics
from ..data.errors import DataError
from ..data.section import Section
from .prediction import Array, Prediction, Subject

TRAINING_MEAN, PATIENT_MEAN, SHUFFLED = "training mean", "same-patient mean", "shuffled spots"
SHUFFLES = 20


@dataclass(frozen=True)
class SectionReport:
    """Figures of one section.

    Parameters
    ----------
    section : str
    spots : int
        Spots that were scored.
    left_out : dict
        Spots that were not, by reason.
    scores : dict
        Measures of the subject; see :data:`m2ost.metrics.MEASURES`.
    intervals : dict
        95 % bootstrap intervals of ``scores``, over spots.
    r_gene : dict
        r across spots by gene; None for a gene that is constant in the section.
    controls : dict
        The same measures for predictors that see no image, and with the spots' labels shuffled.
    """

    section: str
    spots: int
    left_out: dict[str, int]
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    r_gene: dict[str, float | None]
    controls: dict[str, dict[str, float]]

    def best_genes(self, n: int = metrics.TOP_GENES) -> list[tuple[str, float]]:
        """The ``n`` genes of highest r, best first."""
        known = [(gene, r) for gene, r in self.r_gene.items() if r is not None]
        return sorted(known, key=lambda pair: (-pair[1], pair[0]))[:n]


def constant_predictors(
    section: Section, train: Sequence[Section], others: Sequence[Section], panel: Sequence[str], kind: str
) -> dict[str, Array]:
    """What can be predicted without the image: one vector for all spots of a section.

    Parameters
    ----------
    section : Section
        To predict.
    train : sequence of Section
        Its ``training mean`` is over their spots.
    others : sequence of Section
        Where to look for other sections of the same patient, for the ``same-patient mean``.
    panel : sequence of str
    kind : str
        The target.

    Returns
    -------
    dict of ndarray of float32, each shape (len(panel),)
        Without ``same-patient mean`` where the patient has no other section.
    """
    vectors = {}
    if train:
        vectors[TRAINING_MEAN] = np.concatenate([s.targets(panel, kind) for s in train]).mean(axis=0)
    same = [s for s in others if s.patient == section.patient and s.name != section.name]
    if same:
        vectors[PATIENT_MEAN] = np.concatenate([s.targets(panel, kind) for s in same]).mean(axis=0)
    return vectors


def judge(
    section: Section, prediction: Prediction, kind: str, constants: Mapping[str, Array], *, rounds: int = 1000
) -> SectionReport:
    """Score a prediction on one section.

    Parameters
    ----------
    section : Section
        Its spots all have a target.
    prediction : Prediction
        One row a spot.
    kind : str
        The target.
    constants : mapping of ndarray
        From :func:`constant_predictors`.
    rounds : int
        Bootstrap draws.

    Raises
    ------
    DataError
        If fewer than two spots have a prediction, or a gene is absent from the section.
    """
    truth = section.targets(prediction.genes, kind)
    scored = np.isfinite(prediction.values).all(axis=1)
    if scored.sum() < 2:
        raise DataError(f"section {section.name}: {int(scored.sum())} spots have a prediction; two or more are needed")
    truth, values = truth[scored], prediction.values[scored]
    controls = {name: metrics.score(truth, np.broadcast_to(vector, truth.shape)) for name, vector in constants.items()}
    rng = np.random.default_rng(0)
    shuffled = [metrics.score(truth[rng.permutation(len(truth))], values) for _ in range(SHUFFLES)]
    controls[SHUFFLED] = {name: float(np.mean([s[name] for s in shuffled])) for name in metrics.MEASURES}
    r_gene = metrics.pearson(truth, values, 0)
    missing = int((~scored).sum())
    return SectionReport(
        section=section.name,
        spots=len(truth),
        left_out={**section.left_out, **({"without prediction": missing} if missing else {})},
        scores=metrics.score(truth, values),
        intervals=metrics.bootstrap(truth, values, rounds=rounds),
        r_gene={g: float(r) if np.isfinite(r) else None for g, r in zip(prediction.genes, r_gene, strict=True)},
        controls=controls,
    )


def evaluate(
    subject: Subject,
    sections: Sequence[Section],
    judged: Sequence[str],
    trained_on: Sequence[str],
    *,
    rounds: int = 1000,
) -> list[tuple[Section, Prediction, SectionReport]]:
    """Predict and judge some sections of a data set.

    Parameters
    ----------
    subject : Subject
    sections : sequence of Section
        The data set: what is judged, what was trained on, and the patients' other sections.
    judged, trained_on : sequence of str
        Names of sections; disjoint.
    rounds : int
        Bootstrap draws.

    Raises
    ------
    DataError
        If a name is unknown or in both lists, or a section cannot be predicted.
    """
    both = sorted(set(judged) & set(trained_on))
    if both:
        raise DataError(f"{', '.join(both)}: trained on; judge on other sections")
    panel, kind = subject.facts.genes, subject.facts.target
    known = {section.name: section.expressed(panel, kind) for section in sections}
    for name in (*judged, *trained_on):
        if name not in known:
            raise DataError(f"no section {name}; there are {', '.join(known)}")
    results = []
    for name in judged:
        section = known[name]
        prediction = subject.predict(section)
        constants = constant_predictors(section, [known[n] for n in trained_on], list(known.values()), panel, kind)
        results.append((section, prediction, judge(section, prediction, kind, constants, rounds=rounds)))
    return results
