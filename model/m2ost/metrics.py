"""How well predicted expression agrees with measured expression. numpy only: usable where torch is not.

Two correlations answer two questions. Across the genes of one spot (the article's figure), most of the agreement is
that some genes are expressed more than others everywhere; a constant scores high. Across the spots of one section, gene
by gene, a constant scores nothing: this is what the image tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

TOP_GENES = 50


def pearson(truth: Any, prediction: Any, axis: int) -> Array:
    """Pearson's r along an axis.

    Parameters
    ----------
    truth, prediction : array_like, shape (spots, genes)
    axis : int
        0 for r per gene across spots, 1 for r per spot across genes.

    Returns
    -------
    ndarray of float64, shape (genes,) or (spots,)
        NaN where the truth is constant, as nothing can be told then; 0 where only the prediction is.
    """
    a, b = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"truth has shape {a.shape}, prediction {b.shape}")
    a = a - a.mean(axis=axis, keepdims=True)
    b = b - b.mean(axis=axis, keepdims=True)
    scale_a, scale_b = np.sqrt((a * a).sum(axis=axis)), np.sqrt((b * b).sum(axis=axis))
    # A constant leaves rounding errors of the mean behind, far below any real variation.
    tiny = 1e-6 * np.sqrt(a.shape[axis])
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (a * b).sum(axis=axis) / (scale_a * scale_b)
    r = np.where(scale_b <= tiny, 0.0, r)
    return np.where(scale_a <= tiny, np.nan, r)


def rmse(truth: Any, prediction: Any) -> float:
    """Root of the mean squared error over all spots and genes."""
    difference = np.asarray(truth, np.float64) - np.asarray(prediction, np.float64)
    return float(np.sqrt((difference * difference).mean()))


def most_variable(truth: Any, n: int = TOP_GENES) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Columns of the ``n`` genes whose measured expression varies most over the section's spots."""
    variance = np.asarray(truth, np.float64).var(axis=0)
    return np.argsort(-variance, kind="stable")[:n]


def _nanmean(values: Array) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _nanmedian(values: Array) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")


MEASURES: dict[str, Callable[[Array, Array], float]] = {
    "r_spot_mean": lambda truth, prediction: _nanmean(pearson(truth, prediction, 1)),
    "r_gene_mean": lambda truth, prediction: _nanmean(pearson(truth, prediction, 0)),
    "r_gene_median": lambda truth, prediction: _nanmedian(pearson(truth, prediction, 0)),
    "r_gene_top50_mean": lambda truth, prediction: _nanmean(pearson(truth, prediction, 0)[most_variable(truth)]),
    "rmse": rmse,
}
"""What a section is scored by: r per spot across genes; r per gene across spots, over all genes and over the 50 that
vary most in the section; the error in units of the target."""


def score(truth: Any, prediction: Any) -> dict[str, float]:
    """All of :data:`MEASURES` for one section.

    Parameters
    ----------
    truth, prediction : array_like, shape (spots, genes)
    """
    a, b = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    return {name: measure(a, b) for name, measure in MEASURES.items()}


def draws(truth: Any, prediction: Any, *, rounds: int = 1000, seed: int = 0) -> list[dict[str, float]]:
    """:data:`MEASURES` of spots drawn with replacement, ``rounds`` times; parameters as of :func:`bootstrap`."""
    a, b = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(a), (rounds, len(a)))
    return [score(a[rows], b[rows]) for rows in drawn]


def bootstrap(truth: Any, prediction: Any, *, rounds: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals of :data:`MEASURES` by drawing spots with replacement.

    Neighbouring spots resemble each other, so the intervals are rather too narrow than too wide.

    Parameters
    ----------
    truth, prediction : array_like, shape (spots, genes)
    rounds : int
        Draws.
    seed : int
        One seed gives one result.
    """
    scores = draws(truth, prediction, rounds=rounds, seed=seed)
    return {
        name: (
            float(np.nanpercentile([s[name] for s in scores], 2.5)),
            float(np.nanpercentile([s[name] for s in scores], 97.5)),
        )
        for name in MEASURES
    }
