"""A dense map out of few predictions: which places are computed, and what interpolation missed. Pure.

Places are first computed far apart, then half as far, and so on to the map's own pitch. At each step the new places are
the midpoints of the squares before: of their sides, and of themselves. Between places that have values a midpoint can
be interpolated. Where it is computed instead, the two differ by the *error* of interpolation there: in standard
deviations of each gene over the map, of which the 95th percentile over the genes is taken. All first midpoints are
computed. Later ones are where a corner of one of their squares was missed by the tolerance or more, or could not be
measured; and wherever a place between which they lie has no value, for nothing is ever extrapolated.

A place that is interpolated has views that lie within those of the places around it: pixels that cannot be decoded are
noticed there, as on a map without a tolerance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .answers import Expression
from .errors import InputError

COARSEST_PX = 128
"""No map begins with places further apart, in level-0 pixels."""

MOST_STEP = 8
"""Nor further apart than so many cells."""

GENE_PERCENTILE = 95
"""An error is at most this large for so many of a hundred genes."""

CHECK_SHARE = 0.01
"""Share of a map's places, drawn by chance, at which the finished map is compared with a prediction."""

CHECK_SEED = 18

_TOLERANCE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)sd")

Flags = np.ndarray[Any, np.dtype[np.bool_]]
Errors = np.ndarray[Any, np.dtype[np.float32]]


def parse_tolerance(text: str) -> float:
    """Read a tolerance such as ``0.5sd``.

    Returns
    -------
    float
        Standard deviations; 0 computes every place.

    Raises
    ------
    InputError
        If ``text`` is not such a number with its unit.
    """
    found = _TOLERANCE.fullmatch(text.strip())
    if found is None:
        raise InputError(
            f"a tolerance of {text!r}: give it in standard deviations of a gene over the map, such as 0.5sd"
        )
    return float(found[1])


def steps_of(pitch_px: int) -> tuple[int, ...]:
    """How many cells apart places lie, from the coarsest level to the map's own: halves down to 1.

    Parameters
    ----------
    pitch_px : int
        Of the map.

    Raises
    ------
    InputError
        If twice the pitch is more than ``COARSEST_PX``.
    """
    step = 1
    while step < MOST_STEP and 2 * step * pitch_px <= COARSEST_PX:
        step *= 2
    if step == 1:
        raise InputError(
            f"a map at {pitch_px} px has nothing to refine, for its coarsest places would lie further apart than "
            f"{COARSEST_PX} px: choose a pitch of {COARSEST_PX // 2} px at most, or leave the tolerance out"
        )
    return tuple(step >> level for level in range(step.bit_length()))


def midpoints(coarse: Any) -> Any:
    """Interpolate bilinearly to half the distance.

    Parameters
    ----------
    coarse : ndarray of float32, shape (m + 1, n + 1, …)
        Values at places, those of the next squares' first row and column among them; NaN where there is none.

    Returns
    -------
    ndarray of float32, shape (2 m, 2 n, …)
        The places themselves are at even rows and columns. NaN where one that a midpoint lies between has no value.
    """
    rows, columns = coarse.shape[0] - 1, coarse.shape[1] - 1
    fine = np.empty((2 * rows, 2 * columns, *coarse.shape[2:]), np.float32)
    here, right, below = coarse[:-1, :-1], coarse[:-1, 1:], coarse[1:, :-1]
    fine[0::2, 0::2] = here
    fine[0::2, 1::2] = (here + right) / 2
    fine[1::2, 0::2] = (here + below) / 2
    fine[1::2, 1::2] = (here + right + below + coarse[1:, 1:]) / 4
    return fine


def to_compute(asked: Flags, known: Flags, missed: Flags) -> Flags:
    """Which midpoints are computed.

    Parameters
    ----------
    asked : ndarray of bool, shape (h, w)
        Places of the finer level that the map is to hold, h and w at most 2 m and 2 n.
    known : ndarray of bool, shape (m + 2, n + 2)
        Coarser places that have a value, with one row and column of their neighbours on each side.
    missed : ndarray of bool, shape (m + 2, n + 2)
        Those at which interpolation does not hold; see :func:`is_missed`.

    Returns
    -------
    ndarray of bool, shape (h, w)
    """
    square = missed[:-1, :-1] | missed[:-1, 1:] | missed[1:, :-1] | missed[1:, 1:]
    chosen = midpoints(known[1:, 1:].astype(np.float32)) < 1
    chosen[0::2, 0::2] = False
    chosen[1::2, 1::2] |= square[1:, 1:]
    chosen[1::2, 0::2] |= square[1:, :-1] | square[1:, 1:]
    chosen[0::2, 1::2] |= square[:-1, 1:] | square[1:, 1:]
    found: Flags = chosen[: asked.shape[0], : asked.shape[1]] & asked
    return found


def is_missed(computed: Flags, error: Errors, tolerance_sd: float) -> Flags:
    """Where interpolation does not hold, among the places that came with their level.

    Parameters
    ----------
    computed : ndarray of bool, shape (m + 2, n + 2)
        Places of a level, from one row and column before a block on.
    error : ndarray of float32, shape (m + 2, n + 2)
        NaN where none could be measured.
    tolerance_sd : float

    Returns
    -------
    ndarray of bool, shape (m + 2, n + 2)
        False at the places of the level before, which were judged then.
    """
    missed: Flags = computed & ~(error < tolerance_sd)
    missed[1::2, 1::2] = False
    return missed


def error_sd(exact: Expression, found: Expression, sd: Any) -> Errors:
    """What interpolation missed, in standard deviations: the 95th percentile over the genes.

    Parameters
    ----------
    exact, found : ndarray of float32, shape (n, genes)
    sd : ndarray of float64, shape (genes,)
        Of a gene that does not vary 0: any difference is without end then.

    Returns
    -------
    ndarray of float32, shape (n,)
        NaN where a value is missing.
    """
    difference = np.abs(exact.astype(np.float64) - found)
    with np.errstate(divide="ignore"):
        by_gene = np.divide(difference, sd, out=np.zeros_like(difference), where=difference != 0)
    # The next larger of the genes' errors, for between two that are without end nothing can be interpolated.
    errors: Errors = np.percentile(by_gene, GENE_PERCENTILE, axis=1, method="higher").astype(np.float32)
    return errors


def drawn_for_check(number: int, shape: tuple[int, int]) -> Flags:
    """The cells of a block that were drawn for the comparison; the same in every run."""
    drawn: Flags = np.random.default_rng([CHECK_SEED, number]).random(shape) < CHECK_SHARE
    return drawn


def level_of(step: int, steps: Sequence[int], row: Any, column: Any) -> Any:
    """Whether cells came with the level of ``step``: bool, as ``row`` and ``column`` are broadcast together."""
    there = (row % step == 0) & (column % step == 0)
    return there if step == steps[0] else there & ((row % (2 * step) != 0) | (column % (2 * step) != 0))


def spread_of(errors: Any) -> dict[str, float | None]:
    """Median, 95th percentile and maximum of errors; None where there is none."""
    errors = np.asarray(errors, np.float64)
    if not len(errors):
        return {"median": None, "p95": None, "max": None}
    figures = {"median": np.median(errors), "p95": np.percentile(errors, 95, method="higher"), "max": errors.max()}
    return {name: float(value) if math.isfinite(value) else None for name, value in figures.items()}


@dataclass(frozen=True)
class GeneScales:
    """How each gene varies over a map: what errors are told in.

    Parameters
    ----------
    mean, sd : ndarray of float64, shape (genes,)
        Over the places of the coarsest level; NaN where none has a value.
    """

    mean: Any
    sd: Any

    @classmethod
    def over(cls, parts: Iterable[Expression], n_genes: int) -> GeneScales:
        """Of values that come in parts, each of shape (n, genes)."""
        count, mean, squares = 0, np.zeros(n_genes), np.zeros(n_genes)
        for part in parts:
            if not len(part):
                continue
            values = part.astype(np.float64)
            shift = values.mean(axis=0) - mean
            total = count + len(values)
            squares += ((values - values.mean(axis=0)) ** 2).sum(axis=0) + shift**2 * count * len(values) / total
            mean, count = mean + shift * len(values) / total, total
        return cls(mean, np.sqrt(squares / count)) if count else cls(mean * np.nan, squares * np.nan)


class MapCheck:
    """The finished map against predictions at places drawn by chance; sums, whatever the map's size.

    Parameters
    ----------
    scales : GeneScales
        Of the map.
    """

    def __init__(self, scales: GeneScales) -> None:
        self._scales = scales
        self._sums = np.zeros((5, len(scales.sd)))
        self._squares = np.zeros(len(scales.sd))
        self._errors: list[Any] = []
        self._computed = 0

    def add(self, exact: Expression, found: Expression, computed: Flags) -> None:
        """Take in places.

        Parameters
        ----------
        exact, found : ndarray of float32, shape (n, genes)
            Predicted there, and in the map.
        computed : ndarray of bool, shape (n,)
            Whether the map's value is that prediction.
        """
        x, y = exact.astype(np.float64) - self._scales.mean, found.astype(np.float64) - self._scales.mean
        self._sums += [part.sum(axis=0) for part in (x, y, x * x, y * y, x * y)]
        self._squares += ((x - y) ** 2).sum(axis=0)
        self._errors.extend(error_sd(exact, found, self._scales.sd))
        self._computed += int(computed.sum())

    def facts(self) -> dict[str, Any]:
        """For the metadata: places drawn, their errors, and r per gene with the predictions; None where undefined."""
        n = len(self._errors)
        x, y, xx, yy, xy = self._sums
        with np.errstate(divide="ignore", invalid="ignore"):
            r = (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))
            rmse = np.sqrt(self._squares / n) / self._scales.sd if n else r
        r, rmse = r[np.isfinite(r)], rmse[np.isfinite(rmse)]
        return {
            "share": CHECK_SHARE,
            "seed": CHECK_SEED,
            "places": n,
            "of_them_computed": self._computed,
            "error_sd": spread_of(self._errors),
            "rmse_sd": {"median": float(np.median(rmse)), "max": float(rmse.max())} if len(rmse) else None,
            "r_per_gene": {"median": float(np.median(r)), "lowest": float(r.min())} if len(r) else None,
        }
