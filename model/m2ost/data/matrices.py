"""Counts from the files of 10x Genomics and of AnnData. Nothing in them is unpickled or run."""

from __future__ import annotations

import gzip
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
from anndata.io import read_elem
from scipy import sparse
from scipy.io import mmread

from .counts import CountTable, from_matrix
from .errors import DataError

GENES = "Gene Expression"
"""Type of the features that are genes; antibodies and the like are left out."""

UNUSABLE = (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError)


def gene_names(symbols: Sequence[str], ids: Sequence[str]) -> list[str]:
    """Symbols where they are unique, and the Ensembl id of every gene whose symbol is not."""
    times = Counter(symbols)
    return [symbol if times[symbol] == 1 else gene for symbol, gene in zip(symbols, ids, strict=True)]


def read_10x_h5(path: Path) -> CountTable:
    """Read ``*feature_bc_matrix.h5`` of Space Ranger; genes as :func:`gene_names` says.

    Raises
    ------
    DataError
        If the file cannot be read, or as :class:`CountTable` says.
    """
    try:
        with h5py.File(path) as file:
            matrix = file["matrix"]
            barcodes = matrix["barcodes"].asstr()[:]
            features = [matrix[f"features/{column}"].asstr()[:] for column in ("id", "name", "feature_type")]
            # Columns of the matrix are barcodes: read as rows, they are the spots.
            parts = tuple(matrix[part][:] for part in ("data", "indices", "indptr"))
            counts = _checked(sparse.csr_matrix(parts, shape=(len(barcodes), len(features[0]))))
    except UNUSABLE as error:
        raise DataError(f"{path}: not a feature-barcode matrix of Space Ranger: {error}") from error
    return _genes_only(barcodes, features, counts, path)


def read_10x_mtx(folder: Path) -> CountTable:
    """Read the folder ``*feature_bc_matrix`` of Space Ranger; genes as :func:`gene_names` says.

    Raises
    ------
    DataError
        If a file is absent or cannot be read, or as :class:`CountTable` says.
    """
    try:
        barcodes = _lines(folder, "barcodes.tsv")
        rows = [line.split("\t") for line in _lines(folder, "features.tsv")]
        features = [[row[column] for row in rows] for column in range(3)]
        counts = _checked(sparse.csr_matrix(mmread(_plain_or_gz(folder, "matrix.mtx")).T))
        if counts.shape != (len(barcodes), len(rows)):
            raise ValueError(f"the matrix is {counts.shape}, for {len(barcodes)} barcodes and {len(rows)} features")
    except UNUSABLE as error:
        raise DataError(f"{folder}: not a feature-barcode matrix of Space Ranger: {error}") from error
    return _genes_only(barcodes, features, counts, folder)


def read_h5ad(path: Path) -> CountTable:
    """Read counts from ``.h5ad``: the first of ``X``, ``layers["counts"]`` and ``raw.X`` that holds whole numbers.

    Genes are ``var_names``; those that are not unique are named by ``var["gene_ids"]`` where there is such a column.

    Raises
    ------
    DataError
        If the file cannot be read or none of the three holds whole numbers, or as :class:`CountTable` says.
    """
    try:
        with h5py.File(path) as file:
            spots, matrices = _elements(file, path)
            found = next((place for place in matrices if _are_whole(place[1])), None)
            if found is None:
                raise DataError(
                    f'{path}: none of X, layers["counts"] and raw.X holds whole numbers; store the raw counts in '
                    'layers["counts"]'
                )
            matrix, counts, table = found
            genes = list(map(str, table.index))
            if "gene_ids" in table:
                genes = gene_names(genes, list(map(str, table["gene_ids"])))
            if sparse.issparse(counts):
                _checked(counts)
            if counts.shape != (len(spots), len(genes)):
                raise ValueError(f"{matrix} is {counts.shape}, for {len(spots)} spots and {len(genes)} genes")
    except UNUSABLE as error:
        raise DataError(f"{path}: cannot read the counts: {error}") from error
    return from_matrix(spots, genes, counts, path)


def _elements(file: Any, path: Path) -> tuple[Any, Iterator[tuple[str, Any, Any]]]:
    """Names of the spots; and what may be counts, with the table of its genes."""
    if isinstance(file["obs"], h5py.Dataset):  # anndata 0.6
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            old = anndata.read_h5ad(path)
        places = [("X", old.X, old.var), ("layers/counts", old.layers.get("counts"), old.var)]
        places += [("raw/X", old.raw.X, old.raw.var)] if old.raw is not None else []
        return old.obs.index, (place for place in places if place[1] is not None)
    names = (("X", "var"), ("layers/counts", "var"), ("raw/X", "raw/var"))
    found = ((matrix, read_elem(file[matrix]), read_elem(file[var])) for matrix, var in names if matrix in file)
    return read_elem(file["obs"]).index, found


def _genes_only(barcodes: Sequence[str], features: Sequence[Sequence[str]], counts: Any, source: Path) -> CountTable:
    genes = [i for i, kind in enumerate(features[2]) if kind == GENES]
    symbols, ids = ([str(column[i]) for i in genes] for column in (features[1], features[0]))
    return from_matrix(barcodes, gene_names(symbols, ids), counts[:, genes], source)


def _are_whole(matrix: Any) -> bool:
    # NaN and infinity pass: CountTable names where they are.
    values = np.asarray(matrix.data if sparse.issparse(matrix) else matrix)
    finite = values[np.isfinite(values)]
    return bool((finite == np.round(finite)).all())


def _checked(matrix: Any) -> Any:
    """The matrix, its indices known to lie inside: those of a damaged file must not reach native code."""
    matrix.check_format(full_check=True)
    return matrix


def _plain_or_gz(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.is_file() else folder / f"{name}.gz"


def _lines(folder: Path, name: str) -> list[str]:
    path = _plain_or_gz(folder, name)
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8").splitlines()
