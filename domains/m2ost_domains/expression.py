"""Expression of a section's spots, as domains are found on it: from a result of ``m2ost predict``, or from counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from m2ost.data.counts import CountTable, read_counts_table
from m2ost.data.matrices import read_h5ad
from m2ost.data.section import TARGETS
from m2ost_preprocess.slides.spots import read_spots
from scipy import sparse

from .errors import DomainsError

Values = np.ndarray[Any, np.dtype[np.float64]]

PER_SPOT = 1e4
"""What a spot's counts are scaled to before the logarithm."""
GENES = 3000
"""Most variable genes that are kept of counts."""

_TABLE = re.compile(r"\.(tsv|txt)(\.gz)?$")


@dataclass(frozen=True, kw_only=True)
class Expression:
    """Spots of one section, and the values of those that have any.

    Parameters
    ----------
    name : str
        Of the section; stem of the files that are written.
    table : AnnData
        All spots, with ``obsm["spatial"]`` in level-0 pixels.
    rows : ndarray of int, shape (m,)
        Rows of the table that have values.
    values : ndarray of float64, shape (m, genes)
        Logarithms of normalised expression, finite.
    left_out : dict
        Spots without values, by reason.
    mpp : float or None
        µm/px of level 0, where it is known.
    """

    name: str
    table: anndata.AnnData
    rows: np.ndarray[Any, np.dtype[np.intp]]
    values: Values
    left_out: dict[str, int]
    mpp: float | None = None

    @property
    def spot_names(self) -> tuple[str, ...]:
        """Names of the m spots that have values."""
        return tuple(str(self.table.obs_names[row]) for row in self.rows)

    @property
    def centers(self) -> Values:
        """Positions of the m spots that have values, in level-0 pixels: shape (m, 2)."""
        found: Values = np.asarray(self.table.obsm["spatial"], np.float64)[self.rows]
        return found


def read_expression(path: Path, *, spots: Path | None = None, mpp: float | None = None) -> Expression:
    """Read a result or counts.

    Parameters
    ----------
    path : Path
        An ``.h5ad`` that ``m2ost predict`` wrote, an ``.h5ad`` of counts, or a table of counts (``.tsv``, also
        gzipped).
    spots : Path, optional
        Positions for a table of counts, as ``m2ost predict --spots`` reads them. Those without counts are left out.
    mpp : float, optional
        µm/px, in place of what the file says.

    Raises
    ------
    DomainsError
        If there is no expression in it, or no spot has a value or a position.
    DataError, SpotError
        If the counts or the positions cannot be read.
    """
    if not path.is_file():
        raise DomainsError(f"{path}: no such file")
    if _TABLE.search(path.name):
        return _of_table(path, spots, mpp)
    if spots is not None:
        raise DomainsError(f"{path}: has positions of its own; --spots is for tables of counts")
    try:
        table = anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DomainsError(f"{path}: neither a table of counts (.tsv, .tsv.gz) nor an .h5ad: {error}") from error
    if "spatial" not in table.obsm:
        raise DomainsError(f'{path}: has no obsm["spatial"], and domains are drawn where the spots are; add it')
    facts = table.uns.get("m2ost")
    if isinstance(facts, dict) and "target" in facts:
        known = facts.get("slide_facts", {}).get("mpp")
        return _predicted(path, table, str(facts["target"]), mpp or (float(known) if known is not None else None))
    if 0 in table.shape:
        raise DomainsError(f"{path}: holds no expression ({table.shape[0]} spots × {table.shape[1]} genes)")
    return counted(path.stem, table, read_h5ad(path), mpp=mpp)


def _predicted(path: Path, table: anndata.AnnData, target: str, mpp: float | None) -> Expression:
    if target not in TARGETS:
        raise DomainsError(f"{path}: unknown target {target!r}; there are {' and '.join(TARGETS)}")
    if table.X is None or 0 in table.shape:
        raise DomainsError(f"{path}: holds no expression ({table.shape[0]} spots × {table.shape[1]} genes)")
    values = np.asarray(table.X.todense() if sparse.issparse(table.X) else table.X, np.float64)
    there = np.isfinite(values).all(axis=1)
    return Expression(
        name=path.stem,
        table=table,
        rows=np.flatnonzero(there),
        values=values[there],
        left_out=_left_out("without a value", there),
        mpp=mpp,
    )


def _of_table(path: Path, spots: Path | None, mpp: float | None) -> Expression:
    if spots is None:
        raise DomainsError(f"{path}: a table of counts does not say where its spots are; give their file with --spots")
    counts, positions = read_counts_table(path), read_spots(spots)
    row_of = {name: i for i, name in enumerate(counts.spot_names)}
    both = [i for i, name in enumerate(positions.names) if name in row_of]
    if not both:
        raise DomainsError(
            f"{spots}: none of its {len(positions)} spots ({', '.join(positions.names[:3])} …) is a row of {path} "
            f"({', '.join(counts.spot_names[:3])} …); check that the two files belong together"
        )
    names = tuple(positions.names[i] for i in both)
    chosen = CountTable(names, counts.genes, counts.counts[[row_of[name] for name in names]], path)
    missing = {"without counts": len(positions) - len(both), "without a position": len(counts.spot_names) - len(both)}
    found = counted(_TABLE.sub("", path.name), as_table(chosen, positions.centers[both]), chosen, mpp=mpp)
    found.left_out.update({reason: n for reason, n in missing.items() if n})
    return found


def as_table(counts: CountTable, centers: Any) -> anndata.AnnData:
    """Counts and the positions of their spots (n, 2), in level-0 pixels, as AnnData."""
    table = anndata.AnnData(X=counts.counts)
    table.obs_names, table.var_names = list(counts.spot_names), list(counts.genes)
    table.obsm["spatial"] = np.asarray(centers, np.float64).reshape(-1, 2)
    return table


def counted(name: str, table: anndata.AnnData, counts: CountTable, *, mpp: float | None = None) -> Expression:
    """Expression from raw counts: scaled to 10,000 a spot, log1p, the 3,000 genes that vary most.

    Spots without any count are left out.

    Parameters
    ----------
    name : str
    table : AnnData
        Of the same spots, in the same order.
    counts : CountTable
    mpp : float, optional

    Raises
    ------
    DomainsError
        If no spot has a count.
    """
    there = np.asarray(counts.counts.sum(axis=1)).reshape(-1) > 0
    return Expression(
        name=name,
        table=table,
        rows=np.flatnonzero(there),
        values=log_normalised(counts.counts[np.flatnonzero(there)]),
        left_out=_left_out("without a count", there),
        mpp=mpp,
    )


def log_normalised(counts: sparse.csr_matrix) -> Values:
    """Logarithms of counts that are scaled to 10,000 a spot; the columns of the 3,000 genes that vary most.

    Parameters
    ----------
    counts : sparse CSR matrix, shape (m, genes)
        Every row with a count.
    """
    whole = counts.astype(np.float64)
    totals = np.asarray(whole.sum(axis=1)).reshape(-1)
    logs = sparse.csr_matrix(sparse.diags(PER_SPOT / totals) @ whole).log1p()
    mean = np.asarray(logs.mean(axis=0)).reshape(-1)
    variance = np.asarray(logs.multiply(logs).mean(axis=0)).reshape(-1) - mean**2
    kept = np.sort(np.argsort(-variance, kind="stable")[:GENES])
    return np.asarray(logs[:, kept].todense(), np.float64)


def _left_out(reason: str, there: Any) -> dict[str, int]:
    missing = int(len(there) - np.count_nonzero(there))
    return {reason: missing} if missing else {}
