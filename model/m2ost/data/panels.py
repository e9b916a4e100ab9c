"""Gene panels: which genes a network predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from .errors import DataError
from .section import Section

BINS = 20
"""Of mean expression; a gene's dispersion is compared with that of the genes in its bin."""


def select_panel(sections: Sequence[Section], n: int = 250, *, min_share: float = 0.1) -> tuple[str, ...]:
    """Choose highly variable genes, by the normalised dispersion of Satija et al. 2015 (scanpy's ``seurat``).

    Of counts per million of a spot's total, a gene's dispersion is variance / mean over all spots. Its logarithm is
    centred and scaled by that of the genes of like mean expression.

    Parameters
    ----------
    sections : sequence of Section
        Those to train on, and no other: a panel that has seen the test sections is chosen on them.
    n : int
        Size of the panel.
    min_share : float
        Share of spots in which a gene must have a count.

    Returns
    -------
    tuple of str
        Most variable first; ties by name.

    Raises
    ------
    DataError
        If fewer than ``n`` genes are in every section and have counts in enough spots.
    """
    if not sections:
        raise DataError("a panel is chosen on sections, and there is none")
    shared = sorted(set.intersection(*(set(section.genes) for section in sections)))
    cpm = sparse.vstack([_cpm(section, shared) for section in sections], "csr")
    kept = np.flatnonzero(cpm.getnnz(axis=0) >= max(1, min_share * cpm.shape[0]))
    if len(kept) < n:
        raise DataError(
            f"{len(kept)} of the {len(shared)} genes that all {len(sections)} sections measure have counts in "
            f"{min_share:.0%} of the spots; a panel of {n} needs more genes, or a lower share"
        )
    score = _normalised_dispersion(cpm[:, kept])
    return tuple(shared[kept[i]] for i in np.argsort(-score, kind="stable")[:n])


def write_panel(path: Path, panel: Sequence[str]) -> None:
    """Write gene names, one a line, as :func:`m2ost.checkpoint.read_panel` reads them.

    Raises
    ------
    DataError
        If a name would not come back: it is empty, or holds a line break or blanks at its ends.
    """
    for gene in panel:
        if gene.strip().splitlines() != [gene]:
            raise DataError(f"gene {gene!r} cannot be a line of a panel; rename it in the counts")
    path.write_text("".join(f"{gene}\n" for gene in panel), encoding="utf-8")


def _cpm(section: Section, genes: Sequence[str]) -> sparse.csr_matrix:
    """Counts per million of some genes, without the spots that have no count at all."""
    column = {gene: i for i, gene in enumerate(section.genes)}
    totals = np.asarray(section.counts.sum(axis=1, dtype=np.float64)).reshape(-1)
    rows = np.flatnonzero(totals > 0)
    counts = section.counts[rows][:, [column[gene] for gene in genes]].astype(np.float64)
    counts.eliminate_zeros()
    return sparse.csr_matrix(sparse.diags(1e6 / totals[rows]) @ counts)


def _normalised_dispersion(cpm: sparse.csr_matrix) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Shape (genes,); lowest where a gene does not vary."""
    spots = cpm.shape[0]
    mean = np.asarray(cpm.mean(axis=0)).reshape(-1)
    square = np.asarray(cpm.multiply(cpm).mean(axis=0)).reshape(-1)
    variance = (square - mean**2) * spots / max(1, spots - 1)
    varies = variance > 1e-12 * square
    table = pd.DataFrame({"dispersion": np.log(np.where(varies, variance / mean, np.nan))})
    groups = table.groupby(pd.cut(np.log1p(mean), BINS), observed=True)["dispersion"]
    centre, scale = groups.transform("mean"), groups.transform("std")
    # A gene alone in its bin has no spread to compare with.
    alone = scale.isna()
    score = (table["dispersion"] - centre.mask(alone, 0)) / scale.mask(alone, centre)
    return np.asarray(score.fillna(-np.inf), np.float64)
