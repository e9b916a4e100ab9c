"""Positions of spots from files.

======================================  ======================================================  ======================
form                                    x, y in level-0 pixels                                  name
======================================  ======================================================  ======================
selection of legacy ST                  ``pixel_x, pixel_y``                                    ``{x}x{y}``
Visium and Visium HD                    ``pxl_col_in_fullres, pxl_row_in_fullres``              ``barcode``
any other table, or Parquet             the columns of :mod:`m2ost_preprocess.slides.spot_columns`     see there
AnnData (``.h5ad``)                     ``obsm["spatial"]``                                     ``obs_names``
======================================  ======================================================  ======================

The content tells the form, never the file's name; any of them may be packed by gzip. Tables of text are UTF-8, or
UTF-16 with a byte order mark, with a header, and separated by tabs, commas, semicolons or blanks; Visium's
``tissue_positions_list.csv`` has no header. Where every row has one field more than the header, as R's ``write.table``
writes it, the first field is the row's name. Spots whose ``selected`` or ``in_tissue`` is false are left out.

Parquet needs pyarrow and AnnData needs anndata. Tables of text need the standard library alone, so that a gate of
``export`` reads them too.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2ost_contract import install_command

from ..errors import SpotError
from .spot_columns import LABELS, Positions, SpotTable, find_pair

GZIP, HDF5, PARQUET, ZIP = b"\x1f\x8b", b"\x89HDF\r\n\x1a\n", b"PAR1", b"PK\x03\x04"
"""What a file of each kind begins with."""

_DELIMITERS = ("\t", ",", ";", " ")
_VISIUM: tuple[str, ...] = (
    "barcode",
    "in_tissue",
    "array_row",
    "array_col",
    "pxl_row_in_fullres",
    "pxl_col_in_fullres",
)


def read_positions(path: Path) -> Positions:
    """Read centres and names, of one spot at least, from a file in one of the forms above.

    Raises ``SpotError``, which names the file, line and column, if the file cannot be read, holds no spot, has no
    columns of pixels or two that might be, or a row is no spot: it does not fit the header, or a position, a flag or a
    name in it is none.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(HDF5))
        raw = None
        if head.startswith(GZIP):
            raw = gzip.decompress(path.read_bytes())
            head = raw[: len(HDF5)]
        if head.startswith(HDF5):
            from .spot_h5ad import h5ad_positions

            return h5ad_positions(path, path if raw is None else io.BytesIO(raw))
        if head.startswith(PARQUET):
            return _parquet(path, path if raw is None else io.BytesIO(raw)).positions()
        if head.startswith(ZIP):
            raise SpotError(f"{path}: an archive or a workbook, and no table; save the table as CSV (UTF-8)")
        return _text(path, path.read_bytes() if raw is None else raw).positions()
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise SpotError(f"{path}: cannot read the spot file: {error}") from error
    except UnicodeError as error:
        raise SpotError(f"{path}: cannot read the spot file: {error}; save the table as CSV (UTF-8)") from error


def _text(path: Path, raw: bytes) -> SpotTable:
    has_utf16_mark = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = raw.decode("utf-16" if has_utf16_mark else "utf-8-sig")
    if not text.strip():
        raise SpotError(f"{path}: the spot file is empty; it needs a header with pixel_x and pixel_y")
    header, delimiter = _header(text)
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True)
    # Empty lines are left out, but not a row of empty fields: that is a spot without anything.
    rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row) or len(row) > 1]
    columns = _VISIUM if header is None else header
    if header is not None:
        rows = rows[1:]
        if _have_names_of_their_own([row for _, row in rows], columns, delimiter):
            columns = ("", *columns)
    for line, row in rows:
        if len(row) != len(columns):
            raise SpotError(
                f"{path}, line {line}: {len(row)} fields, where the header has {len(columns)}; every row needs a field "
                "for each column, and decimals a point"
            )
    return SpotTable(path, columns, lambda i: [row[i] for _, row in rows], [line for line, _ in rows], "line")


def _header(text: str) -> tuple[tuple[str, ...] | None, str]:
    """Columns, None for Visium's list without a header, and the delimiter: the first by which positions are found."""
    found: list[tuple[tuple[str, ...], str]] = []
    for delimiter in _DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True)
        try:
            fields: list[str] = next((row for row in reader if any(field.strip() for field in row)), [])
        except csv.Error:
            if delimiter == _DELIMITERS[-1] and not found:
                raise
            continue
        if _is_visium_row(fields):
            return None, delimiter
        header = tuple(field.strip() for field in fields)
        if find_pair(header):
            return header, delimiter
        found.append((header, delimiter))
    return max(found, key=lambda one: len(one[0]))


def _have_names_of_their_own(rows: Sequence[Sequence[str]], header: Sequence[str], delimiter: str) -> bool:
    """Whether rows begin with a name that the header has no column for."""
    if not rows or any(len(row) != len(header) + 1 for row in rows) or not any(row[-1] for row in rows):
        return False
    names = [row[0] for row in rows]
    if len(set(names)) < len(names):
        return False
    if delimiter != "," or names == [str(row) for row in range(1, len(rows) + 1)]:
        return True
    # A comma of decimals makes a field more, too: 812,5 is no name and a 5.
    return not any(map(_is_number, names)) and not any(name.casefold() in LABELS for name in header)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_visium_row(fields: list[str]) -> bool:
    try:
        return len(fields) == len(_VISIUM) and all(math.isfinite(float(field)) for field in fields[1:])
    except ValueError:
        return False


def _parquet(path: Path, source: Path | io.BytesIO) -> SpotTable:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise SpotError(f"{path}: Parquet needs pyarrow ({error}): {install_command('client')}") from error
    try:
        with pq.ParquetFile(source) as file:
            table = file.read()
    except pa.ArrowException as error:
        raise SpotError(f"{path}: cannot read the Parquet file: {error}") from error
    # pandas keeps an index without a name under this one, behind the columns.
    order = sorted(range(table.num_columns), key=lambda i: table.column_names[i] != "__index_level_0__")
    header = tuple("" if table.column_names[i] == "__index_level_0__" else table.column_names[i] for i in order)

    def values(i: int) -> Any:
        column = table.column(order[i])
        is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        return column.to_numpy() if is_number else column.to_pylist()

    return SpotTable(path, header, values, range(1, table.num_rows + 1), "row")
