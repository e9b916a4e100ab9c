"""From cells to be scored to blocks stored: what every dense map is made by, with a tolerance or without."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from m2ost_preprocess.slides.dense_grid import Block

from .answers import Expression
from .dense_store import Cells, DenseStore, empty_block
from .errors import OutputError
from .stream import SpotBatch


class BlockMap(Protocol):
    """A map that is made in levels, one after the other; block by block on each.

    Attributes
    ----------
    steps : tuple of int
        One for each level: its places are so many cells apart.
    """

    steps: tuple[int, ...]

    def begin(self) -> int:
        """The level to go on with."""
        ...

    def waiting(self, level: int) -> Iterator[tuple[Block, Cells]]:
        """Every block that is not stored on a level, with the cells to score for it, perhaps none: intp, (n, 2)."""
        ...

    def store(self, level: int, block: Block, cells: Cells, expression: Expression, status: Any) -> None:
        """Store a block on a level, with float32 of shape (n, genes) and int8 of shape (n,) of its cells."""
        ...

    def end(self, level: int) -> None:
        """Every block of a level is stored."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the finished map adds to its metadata."""
        ...


class ExactMap:
    """A map of which every place is predicted; see :class:`BlockMap`.

    Parameters
    ----------
    blocks : callable
        Gives the blocks of the map, one after the other.
    store : DenseStore
        Where the map goes.
    """

    steps: tuple[int, ...] = (1,)

    def __init__(self, blocks: Callable[[], Iterator[Block]], store: DenseStore) -> None:
        self._blocks, self._store = blocks, store

    def begin(self) -> int:
        """There is one level."""
        return 0

    def waiting(self, level: int) -> Iterator[tuple[Block, Cells]]:
        """See :class:`BlockMap`."""
        for block in self._blocks():
            if len(block.cells) and block.number not in self._store.done:
                yield block, block.cells

    def store(self, level: int, block: Block, cells: Cells, expression: Expression, status: Any) -> None:
        """See :class:`BlockMap`."""
        of_block, statuses = empty_block(block, expression.shape[1]), block.empty_status()
        rows, columns = cells.T
        of_block[:, rows, columns] = expression.T
        statuses[rows, columns] = status
        self._store.write(block, of_block, statuses)

    def end(self, level: int) -> None:
        """Nothing is to be done."""

    def facts(self) -> dict[str, Any]:
        """None."""
        return {}


@dataclass
class _OpenBlock:
    """A block some of whose cells are scored."""

    block: Block
    cells: Cells
    expression: Expression
    status: Any
    waiting: int


class LevelRun:
    """One level of a map that is being scored; holds the blocks in between.

    Parameters
    ----------
    blocks : BlockMap
    level : int
    columns : list of int
        The genes to keep, as columns of what is predicted.

    Attributes
    ----------
    most_open : int
        Most blocks held at once.
    """

    def __init__(self, blocks: BlockMap, level: int, columns: list[int]) -> None:
        self._map, self._level, self._columns = blocks, level, columns
        self._open: dict[int, _OpenBlock] = {}
        self.most_open = 0

    def settle(self) -> int:
        """Store the blocks of which no cell is to be scored; how many cells of the others are."""
        total = 0
        for block, cells in self._map.waiting(self._level):
            total += len(cells)
            if not len(cells):
                self._store(self._made_open(block, cells))
        return total

    def take(self) -> Iterator[Any]:
        """The positions of the next block that has cells to score; the block is open from then on.

        A single one is given twice: scored alone its values would have other last bits, and a run that goes on after a
        kill, or with others beside it, would not end with the same bytes.
        """
        scored = (entry for entry in self._map.waiting(self._level) if len(entry[1]))
        for ordinal, (block, cells) in enumerate(scored):
            self._open[ordinal] = self._made_open(block, cells)
            self.most_open = max(self.most_open, len(self._open))
            yield block.centers_of(cells if len(cells) > 1 else np.repeat(cells, 2, axis=0))

    async def put(self, ordinal: int, batch: SpotBatch) -> int:
        """Take in a batch; store the block once it is complete. How many cells were scored."""
        taken = self._open[ordinal]
        once = batch.rows < len(taken.cells)
        rows = batch.rows[once]
        taken.expression[rows] = batch.expression[once][:, self._columns]
        taken.status[rows] = batch.status[once]
        taken.waiting -= len(rows)
        if not taken.waiting:
            await asyncio.to_thread(self._store, taken)
            del self._open[ordinal]
        return len(rows)

    def check_whole(self) -> None:
        """Raise an ``OutputError`` if a block has not come back."""
        if self._open:
            raise OutputError(f"{len(self._open)} blocks did not come back whole; run it again, it goes on from there")

    def _made_open(self, block: Block, cells: Cells) -> _OpenBlock:
        expression = np.full((len(cells), len(self._columns)), np.nan, np.float32)
        return _OpenBlock(block, cells, expression, np.zeros(len(cells), np.int8), len(cells))

    def _store(self, taken: _OpenBlock) -> None:
        self._map.store(self._level, taken.block, taken.cells, taken.expression, taken.status)
