"""Spots of an AnnData file, also of one that anndata 0.6 wrote."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import install_command

from ..errors import SpotError
from .spot_array import find_array, read_array
from .spot_columns import FLAGS, Positions, check_names, check_some, find_pair, read_centers, read_flags


def h5ad_positions(path: Path, source: Path | io.BytesIO) -> Positions:
    """Read centres and names, without the spots whose ``obs["selected"]`` or ``obs["in_tissue"]`` is false.

    ``source`` is the file or its content, ``path`` the file for messages. Raises ``SpotError`` as
    :func:`m2ost_preprocess.slides.spot_files.read_positions` says, or if anndata is not installed.
    """
    try:
        import anndata  # noqa: F401
        import h5py  # noqa: F401
    except ImportError as error:
        raise SpotError(f"{path}: .h5ad needs anndata ({error}): {install_command('client')}") from error
    try:
        obs, spatial = _elements(source)
    except Exception as error:  # of whatever kind a damaged element makes of it
        raise SpotError(f"{path}: cannot read obs_names and obsm['spatial']: {error}") from error
    names = [None if absent else name for name, absent in zip(obs.index, obs.index.isna(), strict=True)]
    columns, x, y = _columns(path, spatial, len(names))
    # Positions and names of spots that do not count may be anything: they are left out before these are looked at.
    kept = np.arange(len(names))
    for column in obs.columns:
        if str(column).casefold() in FLAGS:
            flags = read_flags(obs[column].tolist(), f"obs[{column!r}]", lambda row: f"{path}, spot {names[row]}")
            kept = kept[flags[kept]]
    check_some(len(kept), len(names), str(path))

    def where(row: int) -> str:
        return f"{path}, spot {names[kept[row]]}"

    centers = read_centers(x[kept], y[kept], columns, where)
    pair = find_array([str(column) for column in obs.columns])
    array = None if pair is None else read_array(*(np.asarray(obs[name])[kept] for name in pair))
    return Positions(centers, check_names([names[row] for row in kept], where), columns, array)


def _elements(source: Path | io.BytesIO) -> tuple[Any, Any]:
    """The frame ``obs`` and ``obsm["spatial"]``; the counts are not read, but in a file of anndata 0.6."""
    import anndata
    import h5py
    from anndata.io import read_elem

    with h5py.File(source) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a file is old
        if isinstance(file["obs"], h5py.Dataset):
            table = anndata.read_h5ad(source)
            return table.obs, table.obsm["spatial"]
        obs = read_elem(file["obs"])
        if not hasattr(obs, "index"):
            raise ValueError("obs is not a table of AnnData")
        return obs, read_elem(file["obsm/spatial"])


def _columns(path: Path, spatial: Any, spots: int) -> tuple[tuple[str, ...], Any, Any]:
    """Columns of x and y: their names and values."""
    if np.shape(spatial) != (spots, 2):
        raise SpotError(f"{path}: obsm['spatial'] has shape {np.shape(spatial)}, not (spots, 2) for {spots} spots")
    values = np.asarray(spatial)
    if not hasattr(spatial, "columns") or (header := [str(column) for column in spatial.columns]) == ["0", "1"]:
        return ("obsm['spatial'][:, 0]", "obsm['spatial'][:, 1]"), values[:, 0], values[:, 1]
    pair = find_pair(header)
    if pair is None:
        raise SpotError(
            f"{path}: obsm['spatial'] has the columns {', '.join(header)}; name those of level-0 pixels pixel_x and "
            "pixel_y"
        )
    x, y = (values[:, header.index(name)] for name in pair)
    return pair, x, y
