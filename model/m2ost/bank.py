"""A retrieving network's bank out of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .weights import CheckpointError


def read_bank(path: Path, genes: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Expression of training spots.

    Parameters
    ----------
    path : Path
        An ``.h5ad`` of spots × genes whose values are the network's target.
    genes : sequence of str
        The panel, in output order.

    Returns
    -------
    ndarray of float32, shape (spots, len(genes))

    Raises
    ------
    CheckpointError
        If the file cannot be read, is of another panel (names genes that it lacks), or holds what is no number.
    """
    import anndata

    try:
        table = anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot read the bank: {error}") from error
    missing = [gene for gene in genes if gene not in table.var_names]
    if missing:
        shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise CheckpointError(
            f"{path}: a bank of another panel: it lacks {len(missing)} of the {len(genes)} genes ({shown})"
        )
    chosen = table[:, list(genes)].X
    values = np.asarray(chosen.toarray() if hasattr(chosen, "toarray") else chosen, np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{path}: holds values that are no numbers")
    return values
