"""Made sections whose domains are known."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
from scipy import sparse


def counts_of(truth, *, genes: int = 60, seed: int = 0):
    """Counts in which each domain has twenty genes of its own, three times as high: int, shape (n, genes)."""
    rng = np.random.default_rng(seed)
    rates = np.full((len(truth), genes), 6.0)
    for row, domain in enumerate(truth):
        rates[row, 20 * domain : 20 * (domain + 1)] *= 3
    return rng.poisson(rates)


def bands(side: int = 12):
    """Three bands of a square array: domains (n,), names and positions (n, 2) in pixels."""
    y, x = np.divmod(np.arange(side * side), side)
    return x * 3 // side, [f"{a}x{b}" for a, b in zip(x, y, strict=True)], np.stack([x, y], axis=1) * 290.0 + 500


def write_counts_h5ad(path: Path, counts, names, centers) -> Path:
    table = anndata.AnnData(X=sparse.csr_matrix(counts.astype(np.float32)))
    table.obs_names, table.var_names = names, [f"G{i}" for i in range(counts.shape[1])]
    table.obsm["spatial"] = centers
    table.write_h5ad(path)
    return path


def write_result_h5ad(path: Path, values, names, centers) -> Path:
    """What is read of a result of `m2ost predict`."""
    table = anndata.AnnData(X=values.astype(np.float32))
    table.obs_names, table.var_names = names, [f"G{i}" for i in range(values.shape[1])]
    table.obsm["spatial"] = centers
    table.uns["m2ost"] = {"target": "log1p_cpm_panel", "slide_facts": {"mpp": 0.688}}
    table.write_h5ad(path)
    return path


def write_labels(path: Path, truth, names) -> Path:
    rows = [f"{name}\tkind {domain}" for name, domain in zip(names, truth, strict=True)]
    path.write_text("\n".join(["spot\tlabel", *rows]) + "\n")
    return path
