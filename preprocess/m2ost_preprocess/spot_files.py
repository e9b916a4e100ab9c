"""Positions of spots from files.

==================================  ==========================================================  ======================
form                                x, y in level-0 pixels                                      name
==================================  ==========================================================  ======================
selection of legacy ST              ``pixel_x, pixel_y``                                        ``{x}x{y}``
Visium                              ``pxl_col_in_fullres, pxl_row_in_fullres``                  ``barcode``
any other table with a header       ``pixel_x, pixel_y``, ``x_px, y_px``, ``x, y`` or ``X, Y``  see below
``.h5ad``                           ``obsm["spatial"]``                                         ``obs_names``
==================================  ==========================================================  ======================

Tables are UTF-8, tab- or comma-separated, also gzipped. Visium's ``tissue_positions_list.csv`` has no header, its
``tissue_positions.csv`` has. Rows whose ``selected`` or ``in_tissue`` is 0 are left out. In other tables a column
``name``, ``barcode`` or ``id``, or a first column without a name, names the spots, else their row does.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .errors import SpotError

Centers = np.ndarray[Any, np.dtype[np.float64]]

_COLUMNS = (
    ("pixel_x", "pixel_y"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("x_px", "y_px"),
    ("x", "y"),
    ("X", "Y"),
)
_LABELS = ("name", "barcode", "id", "")
_VISIUM = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")


def read_positions(path: Path) -> tuple[Centers, tuple[str, ...]]:
    """Read centres and names.

    Parameters
    ----------
    path : Path
        A table or ``.h5ad``, in one of the forms above.

    Returns
    -------
    centers : ndarray of float64, shape (n, 2)
        x, y in level-0 pixels.
    names : tuple of str
        As the file has them, unique or not.

    Raises
    ------
    SpotError
        If the file cannot be read, holds no positions, or a coordinate is not a finite number (names the line).
    """
    if path.suffix == ".h5ad":
        return _read_h5ad(path)
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
        return _parse(path, text.decode("utf-8-sig").splitlines())
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise SpotError(f"{path}: cannot read the spot file: {error}") from error


def _parse(path: Path, lines: list[str]) -> tuple[Centers, tuple[str, ...]]:
    if not lines:
        raise SpotError(f"{path}: the spot file is empty; it needs a header with pixel_x and pixel_y")
    delimiter = "\t" if "\t" in lines[0] else ","
    table = csv.DictReader(lines, _VISIUM if _is_visium_list(lines[0]) else None, delimiter=delimiter)
    header = set(table.fieldnames or ())
    pair = next((pair for pair in _COLUMNS if header.issuperset(pair)), None)
    if pair is None:
        raise SpotError(
            f"{path}: no pixel columns among {', '.join(sorted(header))}; the header must hold pixel_x and pixel_y"
        )
    is_selection = {"x", "y", "pixel_x", "pixel_y"} <= header
    label = next((column for column in _LABELS if column in header), None)
    centers: list[list[float]] = []
    names: list[str] = []
    for row in table:
        if any(
            (row.get(column) or "1").strip() in ("0", "0.0", "False", "false") for column in ("selected", "in_tissue")
        ):
            continue
        try:
            center = [float(row[column]) for column in pair]
        except (TypeError, ValueError):
            center = [math.nan]
        if not all(abs(v) < 2**31 - 1 for v in center):  # false for NaN too
            found = ", ".join(f"{column}={row[column]!r}" for column in pair)
            raise SpotError(f"{path}, line {table.line_num}: {found} is not a finite pixel position")
        centers.append(center)
        names.append(f"{row['x']}x{row['y']}" if is_selection else row[label] if label is not None else str(len(names)))
    return np.asarray(centers, np.float64).reshape(-1, 2), tuple(names)


def _is_visium_list(line: str) -> bool:
    fields = line.split(",")
    try:
        return len(fields) == len(_VISIUM) and all(math.isfinite(float(field)) for field in fields[1:])
    except ValueError:
        return False


def _read_h5ad(path: Path) -> tuple[Centers, tuple[str, ...]]:
    try:
        import h5py
    except ImportError as error:
        raise SpotError(f"{path}: .h5ad needs h5py ({error}): pip install 'm2ost-triton[client]'") from error
    try:
        with h5py.File(path) as file:
            index = file["obs"][file["obs"].attrs["_index"]]
            # A nullable array of strings is a group of values and a mask.
            names = (index["values"] if isinstance(index, h5py.Group) else index).asstr()[:]
            centers = np.asarray(file["obsm/spatial"][()], np.float64)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SpotError(f"{path}: cannot read obs_names and obsm['spatial']: {error}") from error
    if centers.shape != (len(names), 2):
        raise SpotError(f"{path}: obsm['spatial'] has shape {centers.shape}, not (spots, 2) for {len(names)} spots")
    bad = np.flatnonzero(~(np.abs(centers) < 2**31 - 1).all(axis=1))
    if len(bad):
        found = centers[bad[0]].tolist()
        raise SpotError(f"{path}, spot {names[bad[0]]}: {found} is not a finite pixel position")
    return centers, tuple(names)
