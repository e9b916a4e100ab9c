"""The levels of a refined map, on disk while they are computed; see :mod:`m2ost_client.refinement`.

Each block of a level is one file, whole or absent, in a hidden folder of the map's own; the last level is the map. So
a run that was killed goes on with the blocks that have no file, and a level needs no more memory than its open blocks
and what their neighbours know at the common border.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import RowStatus, complete_file
from m2ost_preprocess.slides.dense_grid import NOT_ASKED, Block, DenseGrid

from .answers import Expression
from .dense_store import Cells, DenseStore
from .errors import OutputError
from .refinement import (
    GENE_PERCENTILE,
    GeneScales,
    MapCheck,
    drawn_for_check,
    error_sd,
    is_missed,
    level_of,
    midpoints,
    spread_of,
    steps_of,
    to_compute,
)

BEGIN, INSIDE, END = slice(0, 1), slice(1, -1), slice(-1, None)

NOWHERE = {"values": np.nan, "status": NOT_ASKED, "computed": False, "error": np.nan}
"""What is known of a place that the map does not hold."""


@dataclass
class _Places:
    """The places of a block on one level.

    Parameters
    ----------
    values : ndarray of float32, shape (h, w, genes)
        Predicted or interpolated; NaN where status is not OK.
    status : ndarray of int8, shape (h, w)
    computed : ndarray of bool, shape (h, w)
        Whether the value is a prediction.
    error : ndarray of float32, shape (h, w)
        Of interpolation, where it was measured; else NaN.
    """

    values: Any
    status: Any
    computed: Any
    error: Any


class RefinedMap:
    """A map with a tolerance, level by level.

    Parameters
    ----------
    grid : DenseGrid
    blocks : callable
        Gives the blocks of the map, one after the other.
    store : DenseStore
        Where the map goes; made with ``refined``.
    n_genes : int
    tolerance_sd : float

    Attributes
    ----------
    steps : tuple of int
        Cells between the places of each level, coarse to fine.
    """

    def __init__(
        self,
        grid: DenseGrid,
        blocks: Callable[[], Iterator[Block]],
        store: DenseStore,
        n_genes: int,
        tolerance_sd: float,
    ) -> None:
        self.steps = steps_of(grid.pitch_px)
        self._grid, self._blocks, self._store, self._tolerance_sd = grid, blocks, store, tolerance_sd
        self._n_genes = n_genes
        self._scales: GeneScales | None = None

    def begin(self) -> int:
        """Make the folder of the first level, unless there is one; the level to go on with."""
        levels = range(len(self.steps))
        begun = max((level for level in levels if self._folder(level).is_dir()), default=0)
        if begun:
            self._scales = self._read_scales()
            self._forget_before(begun)
        else:
            self._folder(0).mkdir(parents=True, exist_ok=True)
        return begun

    def end(self, level: int) -> None:
        """A level is whole: begin the next."""
        if level == 0:
            blocks = (block.number for block in self._blocks() if len(block.cells))
            parts = (self._read(0, number, ("values", "status")) for number in blocks)
            valued = (part["values"][part["status"] == RowStatus.OK] for part in parts)
            scales = GeneScales.over(valued, self._n_genes)
            with complete_file(self._scales_file) as scratch, scratch.open("wb") as stream:
                np.save(stream, np.stack([scales.mean, scales.sd]))
            self._scales = self._read_scales()
        if level + 1 < len(self.steps):
            self._folder(level + 1).mkdir()
            self._forget_before(level + 1)

    def waiting(self, level: int) -> Iterator[tuple[Block, Cells]]:
        """Every block that is not stored on a level, with the cells to score for it."""
        for block in self._blocks():
            if len(block.cells) and not self._stored(level, block.number):
                computed, drawn = self._chosen(level, block)
                yield block, np.argwhere(computed | drawn) * self.steps[level]

    def store(self, level: int, block: Block, cells: Cells, expression: Expression, status: Any) -> None:
        """Take in the predictions of a block, and store what the level makes of them.

        Parameters
        ----------
        level : int
        block : Block
        cells : ndarray of intp, shape (n, 2)
            As :meth:`waiting` told them.
        expression : ndarray of float32, shape (n, genes)
        status : ndarray of int8, shape (n,)

        Raises
        ------
        OutputError
            If it cannot be stored.
        """
        step = self.steps[level]
        places = self._interpolated(level, block) if level else self._empty(level, block)
        rows, columns = (cells // step).T
        if level:
            places.error[rows, columns] = error_sd(expression, places.values[rows, columns], self._known_scales().sd)
        computed, _ = self._chosen(level, block)
        kept = computed[rows, columns] | (status != RowStatus.OK)
        at = rows[kept], columns[kept]
        last = level + 1 == len(self.steps)
        predicted = places.values.copy() if last else places.values
        predicted[rows, columns] = expression
        places.values[at] = expression[kept]
        places.status[rows, columns] = status
        places.computed[at] = True
        if last:
            self._store_map(block, places, predicted)
        else:
            self._write(level, block.number, **vars(places))

    def facts(self) -> dict[str, Any]:
        """What the finished map says of its errors, for the metadata."""
        found = [(Counter[str](), list[Any]()) for _ in self.steps]
        check = MapCheck(self._known_scales())
        for block in self._blocks():
            if not len(block.cells):
                continue
            of_cells = self._store.read(block, ("status", "computed", "error"))
            asked = of_cells["status"] != NOT_ASKED
            for step, (counts, errors) in zip(self.steps, found, strict=True):
                rows, columns = np.ogrid[: block.rows, : block.columns]
                here = asked & level_of(step, self.steps, rows, columns)
                computed = here & of_cells["computed"]
                measured = of_cells["error"][computed]
                counts.update(places=int(here.sum()), computed=int(computed.sum()))
                counts.update(missed=int((measured >= self._tolerance_sd).sum()))
                errors.append(measured[~np.isnan(measured)])
            check.add(**self._read(len(self.steps) - 1, block.number, ("exact", "found", "computed")))
        levels: list[dict[str, Any]] = [
            {"pitch_px": step * self._grid.pitch_px, **counts, "error_sd": spread_of(np.concatenate([[], *errors]))}
            for step, (counts, errors) in zip(self.steps, found, strict=True)
        ]
        counted = {name: sum(level[name] for level in levels) for name in ("places", "computed")}
        refinement = {
            "tolerance_sd": self._tolerance_sd,
            "gene_percentile": GENE_PERCENTILE,
            **counted,
            "levels": levels,
            "check": check.facts(),
        }
        return {"refinement": refinement}

    def _shape(self, level: int, block: Block) -> tuple[int, int]:
        step = self.steps[level]
        return -(-block.rows // step), -(-block.columns // step)

    def _asked(self, level: int, block: Block) -> Any:
        step = self.steps[level]
        return block.empty_status()[::step, ::step] != NOT_ASKED

    def _chosen(self, level: int, block: Block) -> tuple[Any, Any]:
        """The places of a level that are computed, and on the last those that are predicted for the check alone."""
        asked = self._asked(level, block)
        if level == 0:
            return asked, np.zeros_like(asked)
        before = self._around(level - 1, block, ("status", "computed", "error"))
        missed = np.ones_like(before["computed"])
        if level > 1:
            missed = is_missed(before["computed"], before["error"], self._tolerance_sd)
        computed = to_compute(asked, before["status"] == RowStatus.OK, missed)
        if level + 1 < len(self.steps):
            return computed, np.zeros_like(asked)
        have = computed.copy()
        have[::2, ::2] |= before["computed"][INSIDE, INSIDE]
        return computed, drawn_for_check(block.number, asked.shape) & asked & ~have

    def _empty(self, level: int, block: Block) -> _Places:
        shape = self._shape(level, block)
        status = np.where(self._asked(level, block), np.int8(RowStatus.OK), np.int8(NOT_ASKED))
        values = np.full((*shape, self._n_genes), np.nan, np.float32)
        return _Places(values, status, np.zeros(shape, bool), np.full(shape, np.nan, np.float32))

    def _interpolated(self, level: int, block: Block) -> _Places:
        """The places of a level with what is known from the one before."""
        places = self._empty(level, block)
        before = self._around(level - 1, block, tuple(NOWHERE), steps=(0, 1))
        rows, columns = places.status.shape
        places.values = midpoints(before["values"][1:, 1:])[:rows, :columns]
        places.values[places.status == NOT_ASKED] = np.nan
        for name in ("status", "computed", "error"):
            getattr(places, name)[::2, ::2] = before[name][INSIDE, INSIDE]
        return places

    def _store_map(self, block: Block, places: _Places, predicted: Any) -> None:
        level = len(self.steps) - 1
        drawn = drawn_for_check(block.number, places.status.shape) & (places.status == RowStatus.OK)
        self._write(
            level,
            block.number,
            exact=predicted[drawn],
            found=places.values[drawn],
            computed=places.computed[drawn],
        )
        self._store.write(
            block,
            np.ascontiguousarray(np.moveaxis(places.values, 2, 0)),
            places.status,
            computed=places.computed,
            error=places.error,
        )

    def _around(
        self, level: int, block: Block, names: tuple[str, ...], steps: tuple[int, ...] = (-1, 0, 1)
    ) -> dict[str, Any]:
        """The places of a block, in the midst of the nearest row and column of its neighbours: (h + 2, w + 2, …)."""
        down_to, across = self._grid.blocks_each_way
        row, column = divmod(block.number, across)
        own = self._read(level, block.number, names)
        rows, columns = self._shape(level, block)
        found = {}
        for name in names:
            shape = (rows + 2, columns + 2, *own[name].shape[2:])
            found[name] = np.full(shape, NOWHERE[name], own[name].dtype)
            found[name][INSIDE, INSIDE] = own[name]
        into, out_of = {-1: BEGIN, 0: INSIDE, 1: END}, {-1: END, 0: slice(None), 1: BEGIN}
        for down in steps:
            for right in steps:
                inside = 0 <= row + down < down_to and 0 <= column + right < across
                number = block.number + down * across + right
                if (down or right) and inside and self._file(level, number).exists():
                    other = self._read(level, number, names)
                    for name in names:
                        found[name][into[down], into[right]] = other[name][out_of[down], out_of[right]]
        return found

    def _folder(self, level: int) -> Path:
        return self._store.scratch / str(self.steps[level])

    def _file(self, level: int, number: int) -> Path:
        return self._folder(level) / f"{number}.npz"

    @property
    def _scales_file(self) -> Path:
        return self._store.scratch / "scales.npy"

    def _read_scales(self) -> GeneScales:
        return GeneScales(*np.load(self._scales_file))

    def _known_scales(self) -> GeneScales:
        assert self._scales is not None, "the coarsest level is not whole"
        return self._scales

    def _stored(self, level: int, number: int) -> bool:
        if level + 1 == len(self.steps):
            return number in self._store.done
        return self._file(level, number).exists()

    def _read(self, level: int, number: int, names: tuple[str, ...]) -> dict[str, Any]:
        with np.load(self._file(level, number)) as stored:
            return {name: stored[name] for name in names}

    def _write(self, level: int, number: int, **arrays: Any) -> None:
        file = self._file(level, number)
        try:
            with complete_file(file) as scratch, scratch.open("wb") as stream:
                np.savez(stream, **arrays)
        except OSError as error:
            raise OutputError(f"{file}: cannot be written ({error}); free space and run it again") from error

    def _forget_before(self, level: int) -> None:
        """Remove levels from which nothing is interpolated any more."""
        for former in range(level - 1):
            shutil.rmtree(self._folder(former), ignore_errors=True)
