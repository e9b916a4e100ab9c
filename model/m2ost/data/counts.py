"""Tables of counts: spots in rows, genes in columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from .errors import DataError


@dataclass(frozen=True)
class CountTable:
    """Counts of one section.

    Parameters
    ----------
    spot_names : tuple of str
        Rows, unique.
    genes : tuple of str
        Columns, unique.
    counts : sparse CSR matrix, shape (rows, columns)
        Finite and not negative.
    source : Path
        The file, for messages.

    Raises
    ------
    DataError
        If a name appears twice, or a count is no count; says where.
    """

    spot_names: tuple[str, ...]
    genes: tuple[str, ...]
    counts: sparse.csr_matrix
    source: Path

    def __post_init__(self) -> None:
        if 0 in self.counts.shape:
            raise DataError(
                f"{self.source}: the table is empty ({self.counts.shape[0]} spots × {len(self.genes)} genes)"
            )
        for kind, names in (("gene", self.genes), ("spot", self.spot_names)):
            name, times = Counter(names).most_common(1)[0]
            if times > 1:
                raise DataError(f"{self.source}: {kind} {name!r} appears {times} times; make the names unique")
        bad = np.flatnonzero(~(self.counts.data >= 0) | ~np.isfinite(self.counts.data))
        if len(bad):
            row = int(np.searchsorted(self.counts.indptr, bad[0], side="right")) - 1
            gene = self.genes[self.counts.indices[bad[0]]]
            raise DataError(
                f"{self.source}, spot {self.spot_names[row]}, gene {gene}: {self.counts.data[bad[0]]} is no count; "
                "counts are finite and not negative"
            )


def read_counts_table(path: Path) -> CountTable:
    """Read a tab-separated table (``.tsv``, also gzipped) with spots in rows and genes in columns.

    Raises
    ------
    DataError
        If the file cannot be read, or as :class:`CountTable` says.
    """
    try:
        frame = pd.read_csv(path, sep="\t", index_col=0, dtype={0: str}, na_filter=True)
    except (OSError, ValueError, EOFError, pd.errors.ParserError) as error:
        raise DataError(f"{path}: cannot read the counts: {error}") from error
    texts = [column for column in frame.columns if len(frame) and not pd.api.types.is_numeric_dtype(frame[column])]
    if texts:
        raise DataError(f"{path}, column {texts[0]!r}: holds text; a table of counts holds numbers only")
    genes = _header(path)
    return CountTable(
        tuple(str(spot) for spot in frame.index),
        genes if len(genes) == frame.shape[1] else tuple(str(gene) for gene in frame.columns),
        _sparse(frame.to_numpy()),
        path,
    )


def _header(path: Path) -> tuple[str, ...]:
    """Column names as written: pandas renames a second ``GENE`` to ``GENE.1``, and duplicates must be seen."""
    header = pd.read_csv(path, sep="\t", header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0]
    return tuple(str(gene) for gene in header[1:])


def _sparse(values: Any) -> sparse.csr_matrix:
    # NaN is kept: it is not equal to 0, and CountTable refuses it by name.
    return sparse.csr_matrix(np.asarray(values, np.float32))


def from_matrix(spot_names: Sequence[str], genes: Sequence[str], matrix: Any, source: Path) -> CountTable:
    """A table from a matrix that lies in memory, dense or sparse, shape (spots, genes)."""
    csr = sparse.csr_matrix(matrix, dtype=np.float32) if sparse.issparse(matrix) else _sparse(matrix)
    return CountTable(tuple(map(str, spot_names)), tuple(map(str, genes)), csr, source)
