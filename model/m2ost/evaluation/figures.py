"""Measured beside predicted expression, drawn at the spots' places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..data.section import Section


def _panels(section: Section, titles: list[str], colours: list[Any], out: Path, label: str = "") -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    x, y = section.centers.T
    height = 0.5 + 5 * float(np.clip(np.ptp(y) / max(np.ptp(x), 1), 0.3, 3))
    figure, axes = plt.subplots(1, len(titles), figsize=(5 * len(titles), height), layout="constrained")
    for axis, title, colour in zip(axes, titles, colours, strict=True):
        mark = axis.scatter(x, y, c=colour, s=40)
        axis.set(title=title, aspect="equal", xticks=[], yticks=[])
        axis.invert_yaxis()
        if label:
            figure.colorbar(mark, ax=axis, shrink=0.7, label=label)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def draw_gene(section: Section, truth: Any, prediction: Any, gene: str, out: Path) -> None:
    """One gene, measured and predicted, each on its own scale: predictions vary less than counts.

    Parameters
    ----------
    section : Section
        n spots.
    truth, prediction : ndarray, shape (n,)
    gene : str
    out : Path
        PNG.
    """
    titles = [f"{section.name} {gene}, measured", f"{section.name} {gene}, predicted"]
    _panels(section, titles, [truth, prediction], out, "log1p CPM")


def draw_components(section: Section, truth: Any, prediction: Any, out: Path) -> None:
    """The three leading principal components of the measured expression as red, green, blue; the prediction likewise.

    Both are projected on the components of the measured expression and scaled to their own 2nd to 98th percentile.

    Parameters
    ----------
    section : Section
        n spots.
    truth, prediction : ndarray, shape (n, genes)
    out : Path
        PNG.
    """
    axes = np.linalg.svd(truth - truth.mean(axis=0), full_matrices=False)[2][:3].T
    colours = []
    for values in (truth, prediction):
        component = (values - values.mean(axis=0)) @ axes
        low, high = np.percentile(component, [2, 98], axis=0)
        colours.append(np.clip((component - low) / np.maximum(high - low, 1e-9), 0, 1))
    _panels(section, [f"{section.name}, measured", f"{section.name}, predicted"], colours, out)
