"""One tissue section with its spots and counts, whatever data set it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_preprocess.slides.spot_array import IN_WORDS, Places
from m2ost_preprocess.slides.spots import Spots
from scipy import sparse

from .counts import CountTable
from .errors import DataError

TARGETS = ("log1p_cpm_panel", "log1p_cpm_total")
"""``log1p(1e6 · count / total)``; the total is the panel's (the paper's target) or that of all genes of the spot."""

Targets = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Spots of one section that have both a position and counts.

    Parameters
    ----------
    name : str
        Unique within a data set.
    patient : str
        Whose tissue; splits by patient keep a patient's sections together.
    image : Path
        The slide, readable by a :class:`m2ost_preprocess.decoder.Decoder`.
    spot_names : tuple of str
        n names, in row order.
    centers : ndarray of float64, shape (n, 2)
        x, y in level-0 pixels of the image.
    genes : tuple of str
        Columns of ``counts``, unique.
    counts : sparse CSR matrix, shape (n, genes)
        Raw counts, not negative.
    mpp : float or None
        µm/px of the image, where the data set says so.
    columns : tuple of str
        Where the file of positions has x and y.
    left_out : mapping of str to int
        Spots of the files that are not here, by reason.
    array : ndarray of int32, shape (n, 2), or None
        x, y on the array, where the data set tells.
    """

    name: str
    patient: str
    image: Path
    spot_names: tuple[str, ...]
    centers: np.ndarray[Any, np.dtype[np.float64]]
    genes: tuple[str, ...]
    counts: sparse.csr_matrix
    mpp: float | None = None
    columns: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    array: Places | None = None

    def __len__(self) -> int:
        return len(self.spot_names)

    def panel_counts(self, panel: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Counts of the genes of a panel, in its order: float64, shape (n, len(panel)).

        Raises
        ------
        DataError
            If the section lacks a gene of the panel; names it.
        """
        column = {gene: i for i, gene in enumerate(self.genes)}
        missing = [gene for gene in panel if gene not in column]
        if missing:
            shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
            raise DataError(
                f"section {self.name}: {len(missing)} of the panel's {len(panel)} genes are absent from its counts "
                f"({shown}); choose a panel of genes that every section measures"
            )
        return np.asarray(self.counts[:, [column[gene] for gene in panel]].todense(), np.float64)

    def targets(self, panel: Sequence[str], kind: str = TARGETS[0]) -> Targets:
        """What a network learns to predict.

        Parameters
        ----------
        panel : sequence of str
            Genes, in output order.
        kind : str
            One of :data:`TARGETS`.

        Returns
        -------
        ndarray of float32, shape (n, len(panel))

        Raises
        ------
        DataError
            If a gene is absent, or a spot's total is 0: drop such spots by :meth:`expressed` first.
        """
        chosen = self.panel_counts(panel)
        totals = _totals(self, chosen, kind)
        if (totals == 0).any():
            raise DataError(f"section {self.name}: {int((totals == 0).sum())} spots have a total of 0 and no target")
        return np.log1p(1e6 * chosen / totals[:, None]).astype(np.float32)

    def expressed(self, panel: Sequence[str], kind: str = TARGETS[0]) -> Section:
        """The section without the spots whose total is 0; they are counted in ``left_out``."""
        kept = np.flatnonzero(_totals(self, self.panel_counts(panel), kind) > 0)
        dropped = len(self) - len(kept)
        return self.take(kept, {"zero total": dropped} if dropped else {})

    def take(self, rows: Any, left_out: Mapping[str, int] | None = None) -> Section:
        """The section with ``rows`` only; ``left_out`` says why the others went."""
        return replace(
            self,
            spot_names=tuple(self.spot_names[int(i)] for i in rows),
            centers=self.centers[rows],
            counts=self.counts[rows],
            left_out=dict(Counter(self.left_out) + Counter(left_out or {})),
            array=None if self.array is None else self.array[rows],
        )

    def places(self) -> Places:
        """x, y on the array, as a slide-level network is given them: int32, shape (n, 2).

        Raises
        ------
        DataError
            If the data set does not tell.
        """
        if self.array is None:
            raise DataError(
                f"section {self.name}: a network that predicts a slide as a whole needs {IN_WORDS}; its file of spots "
                "has none"
            )
        return self.array


def _totals(section: Section, panel_counts: Any, kind: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    if kind not in TARGETS:
        raise DataError(f"unknown target {kind!r}; choose {' or '.join(TARGETS)}")
    totals = panel_counts.sum(axis=1) if kind == TARGETS[0] else np.asarray(section.counts.sum(axis=1)).reshape(-1)
    return np.asarray(totals, np.float64)


def join(*, name: str, patient: str, image: Path, spots: Spots, table: CountTable, mpp: float | None = None) -> Section:
    """Match positions and counts by spot name.

    Raises
    ------
    DataError
        If no name is in both; names the files and the remedy.
    """
    row_of = {spot: i for i, spot in enumerate(table.spot_names)}
    both = [i for i, spot in enumerate(spots.names) if spot in row_of]
    if not both:
        raise DataError(
            f"section {name}: none of the {len(spots)} spots of its position file is a row of {table.source} "
            f"(positions: {_some(spots.names)}; counts: {_some(table.spot_names)}); check that the two files belong "
            "together"
        )
    left_out = {"without counts": len(spots) - len(both), "without a position": len(table.spot_names) - len(both)}
    return Section(
        name=name,
        patient=patient,
        image=image,
        spot_names=tuple(spots.names[i] for i in both),
        centers=spots.centers[both],
        genes=table.genes,
        counts=table.counts[[row_of[spots.names[i]] for i in both]],
        mpp=mpp,
        columns=spots.columns,
        left_out={reason: n for reason, n in left_out.items() if n},
        array=None if spots.array is None else spots.array[both],
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "") if names else "none"
