"""What the columns of a table of spots mean.

Positions are, in this order, ``level0_x, level0_y``; one of ``pixel_x, pixel_y``, ``pxl_col_in_fullres,
pxl_row_in_fullres`` and ``x_px, y_px``; ``x, y`` or ``X, Y``. The last two say nothing of pixels: a table that has
other columns of places beside them may mean places on an array by them, and is refused.

``name``, ``barcode`` or ``id``, or a first column without a name, names the spots, else their row does. ``selected``
and ``in_tissue`` say which spots count. Case matters in columns of positions alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SpotError
from .spot_array import Places, find_array, read_array

SpotCenters = np.ndarray[Any, np.dtype[np.float64]]
"""x, y as a file gives them, shape (n, 2)."""

Where = Callable[[int], str]
"""Where a row of the file is, in words."""

LEVEL0 = ("level0_x", "level0_y")
"""Columns by which a table says itself that its positions are level-0 pixels of the very slide."""

NAMED_PIXELS = (("pixel_x", "pixel_y"), ("pxl_col_in_fullres", "pxl_row_in_fullres"), ("x_px", "y_px"))
_UNNAMED = (("x", "y"), ("X", "Y"))
LABELS = ("name", "barcode", "id")
FLAGS = ("selected", "in_tissue")

# Columns that make x and y beside them something else than pixels.
_OTHER_PLACES = re.compile(
    r"(pixel|px|pxl|image|img|new|adj)[_ ]?(x|y|row|col)|[xy][_ ]?(pixel|px)s?|.*(hires|lowres|fullres).*",
    re.IGNORECASE,
)
_TRUE, _FALSE = ("true", "t", "yes", "y"), ("false", "f", "no", "n")
_MOST_PX = 2**31 - 1
# HDF5 ends a text at NUL, and UTF-8 has no half of a surrogate pair.
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Positions:
    """Spots as a file has them."""

    centers: SpotCenters  # in level-0 pixels, finite
    names: tuple[str, ...]  # one a spot, unique, without control characters
    columns: tuple[str, ...]  # where the file has x and y
    array: Places | None = None  # x, y on the array, where the file has them


@dataclass(frozen=True)
class SpotTable:
    """A table of any form."""

    path: Path  # for messages
    header: tuple[str, ...]  # names of the columns, in order
    # Values of the column at a place: an array of numbers, or texts, flags and None as the file has them.
    column: Callable[[int], Any]
    numbers: Sequence[int]  # of each row in the file
    unit: str  # what is numbered: ``line`` or ``row``

    def positions(self) -> Positions:
        """The spots of the table; ``SpotError`` as :func:`m2ost_preprocess.slides.spot_files.read_positions` says."""
        pair = find_pair(self.header)
        if pair is None:
            shown = ", ".join(name if name.isprintable() else repr(name) for name in sorted(set(self.header)))
            raise SpotError(f"{self.path}: no pixel columns among {shown}; the header must hold pixel_x and pixel_y")
        self._check_meaning(pair)
        kept = np.arange(len(self.numbers))
        for i in self._all_of(FLAGS):
            flags = read_flags(self.column(i), self.header[i], self._where)
            kept = kept[flags[kept]]
        check_some(len(kept), len(self.numbers), str(self.path))

        def where(row: int) -> str:
            return self._where(int(kept[row]))

        def both(names: tuple[str, str]) -> tuple[Any, Any]:
            x, y = (self._take(self.header.index(name), kept) for name in names)
            return x, y

        array = find_array(self.header)
        centers = read_centers(*both(pair), pair, where)
        names = check_names(self._names(kept), where)
        return Positions(centers, names, pair, None if array is None else read_array(*both(array)))

    def _where(self, row: int) -> str:
        return f"{self.path}, {self.unit} {self.numbers[row]}"

    def _take(self, column: int, rows: np.ndarray[Any, Any]) -> Any:
        values = self.column(column)
        return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]

    def _all_of(self, names: Sequence[str]) -> list[int]:
        """Places of the columns that have one of these names, in any case; none may be there twice."""
        found = [(name.casefold(), i) for i, name in enumerate(self.header) if name.casefold() in names]
        for name, i in found:
            if sum(name == other for other, _ in found) > 1:
                raise SpotError(f"{self.path}: column {self.header[i]} is there twice; keep the one that is meant")
        return [i for _, i in sorted(found, key=lambda one: names.index(one[0]))]

    def _check_meaning(self, pair: tuple[str, str]) -> None:
        for name in (*pair, *_UNNAMED[0]):
            if self.header.count(name) > 1:
                raise SpotError(f"{self.path}: column {name} is there twice; keep the one that is meant")
        shown = ", ".join(pair)
        named = [", ".join(other) for other in NAMED_PIXELS if set(other) <= set(self.header)]
        # Two pairs may be of two images, and nothing tells which is level 0.
        if pair in NAMED_PIXELS and len(named) > 1:
            raise SpotError(f"{self.path}: columns {' and '.join(named)} all say pixels; keep those of level 0")
        if pair not in _UNNAMED:
            return
        others = [name for name in self.header if _OTHER_PLACES.fullmatch(name)]
        if all(set(other) <= set(self.header) for other in _UNNAMED):
            others += _UNNAMED[1]
        if others:
            raise SpotError(
                f"{self.path}: columns {shown} beside {', '.join(others)} may be places on an array, not pixels; name "
                "the two columns of the slide's level-0 pixels pixel_x and pixel_y"
            )

    def _names(self, kept: np.ndarray[Any, Any]) -> Sequence[Any]:
        if {"x", "y", "pixel_x", "pixel_y"} <= set(self.header):  # a selection of legacy ST
            columns = [self._take(self.header.index(name), kept) for name in ("x", "y")]
            return [f"{x}x{y}" for x, y in zip(*columns, strict=True)]
        labels = self._all_of(LABELS) or [i for i in (0,) if not self.header[i]]
        names: Sequence[Any] = self._take(labels[0], kept) if labels else range(len(kept))
        return names


def find_pair(header: Sequence[str]) -> tuple[str, str] | None:
    """The columns of x and y; None where there are none."""
    return next((pair for pair in (LEVEL0, *NAMED_PIXELS, *_UNNAMED) if set(pair) <= set(header)), None)


def check_some(kept: int, rows: int, source: str) -> None:
    """Raise ``SpotError`` where a file, named by ``source``, has no rows or none that counts."""
    if not rows:
        raise SpotError(f"{source}: holds no spot; give a file that does, or none for a grid over the tissue")
    if not kept:
        raise SpotError(f"{source}: none of its {rows} spots counts by {' and '.join(FLAGS)}; mark some with 1")


def read_flags(values: Any, column: str, where: Where) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Read a column of yes and no: 1 and 0, true and false, T and F, yes and no, in any case.

    ``values`` are n numbers, booleans or texts; gives bool, shape (n,). Raises ``SpotError`` where one is neither, as
    an absent one is.
    """
    known: dict[Any, bool | None] = {}
    # A column of thousands has two or three different values: each is understood once.
    flags = np.empty(len(values), bool)
    for row, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
        key = value if isinstance(value, (str, bool, int, float)) else str(value)
        if key not in known:
            known[key] = _flag(key)
        flag = known[key]
        if flag is None:
            raise SpotError(f"{where(row)}, column {column}: {value!r} is neither true nor false; write 1 or 0")
        flags[row] = flag
    return flags


def _flag(value: Any) -> bool | None:
    text = str(value).strip().casefold()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    try:
        return {0.0: False, 1.0: True}.get(float(text))
    except ValueError:
        return None


def read_centers(x: Any, y: Any, columns: Sequence[str], where: Where) -> SpotCenters:
    """Positions, float64 of shape (n, 2), from two columns of n numbers or texts of numbers; ``columns`` names them.

    Raises ``SpotError`` where a value is no finite number, or one beyond any slide.
    """
    centers = np.stack([_numbers(x), _numbers(y)], axis=1)
    bad = np.flatnonzero(~(np.abs(centers) < _MOST_PX).all(axis=1))  # NaN too
    if len(bad):
        row = int(bad[0])
        found = ", ".join(f"{name}={_plain(values[row])!r}" for name, values in zip(columns, (x, y), strict=True))
        raise SpotError(
            f"{where(row)}: {found} is not a finite pixel position; write plain numbers, their decimals with a point"
        )
    return centers


def _numbers(values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        return values.astype(np.float64)
    return np.array([_number(value) for value in values], np.float64)


def _number(value: Any) -> float:
    if isinstance(value, str) and "_" in value:  # Python reads 7_9 as 79
        return math.nan
    try:
        return math.nan if isinstance(value, (bool, np.bool_)) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def check_names(values: Sequence[Any], where: Where) -> tuple[str, ...]:
    """Names that a result can be written with, from texts or numbers.

    Raises ``SpotError`` where one is absent or empty, holds what no file of results can, or is there twice.
    """
    first: dict[str, int] = {}
    for row, value in enumerate(values):
        # NaN, which alone differs from itself, is how a table says that a name is absent.
        name = "" if value is None or value != value else str(value)
        if not name.strip():
            raise SpotError(f"{where(row)}: the spot has no name; name every spot, or leave the column of names out")
        if _UNWRITABLE.search(name):
            raise SpotError(f"{where(row)}: name {name!r} holds a control character; remove it, no result can hold it")
        if first.setdefault(name, row) != row:
            raise SpotError(
                f"{where(row)}: spot {name!r} appears twice, in {where(first[name])} before; names must be unique"
            )
    return tuple(first)
