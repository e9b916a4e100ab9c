"""A dense map: one position for each small square of a slide, taken block by block, so that its size costs no memory.

The squares tile the slide from its first pixel on, whatever part of it is asked for: a map of a region holds the same
positions as the map of the slide does there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from m2ost_contract import RowStatus

from ..errors import SpotError
from .rectangle import Rectangle
from .tissue import Mask, TissueShares

BLOCK_CELLS = 64
"""Side of the blocks that a map is computed and stored in, in cells."""

NOT_ASKED = -1
"""Status of a position that is not scored: it lies off the tissue. Others are ``RowStatus`` values."""

_PITCH = re.compile(r"([1-9]\d{0,3})px")


def parse_pitch(text: str) -> int:
    """Read a pitch such as ``16px``.

    Returns
    -------
    int
        Level-0 pixels.

    Raises
    ------
    SpotError
        If ``text`` is not a whole number of pixels with its unit.
    """
    found = _PITCH.fullmatch(text.strip())
    if found is None:
        raise SpotError(f"a dense map at {text!r}: give its pitch in whole level-0 pixels with the unit, such as 16px")
    return int(found[1])


@dataclass(frozen=True)
class Block:
    """A rectangle of a map's cells.

    Parameters
    ----------
    number : int
        Which of the map's blocks, row by row.
    row, column, rows, columns : int
        Its cells, counted from the map's first.
    cells : ndarray of intp, shape (n, 2)
        Row and column, counted from the block's first, of every position to score, row by row: those that follow each
        other share most of their pixels.
    tissue : ndarray of bool, shape (rows, columns)
        Whether at least half of a cell is tissue.
    grid : DenseGrid
        The map's.
    """

    number: int
    row: int
    column: int
    rows: int
    columns: int
    cells: np.ndarray[Any, np.dtype[np.intp]]
    tissue: Mask
    grid: DenseGrid

    @property
    def centers(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """x, y of every position to score in level-0 pixels: int32, shape (n, 2)."""
        return self.centers_of(self.cells)

    def centers_of(self, cells: np.ndarray[Any, np.dtype[np.intp]]) -> np.ndarray[Any, np.dtype[np.int32]]:
        """x, y of the positions of cells, counted as ``cells`` are, in level-0 pixels: int32, shape (n, 2)."""
        pitch_px = self.grid.pitch_px
        positions = (cells + self.grid.first + (self.row, self.column)) * pitch_px + pitch_px // 2
        return positions[:, ::-1].astype(np.int32)

    @property
    def area(self) -> tuple[slice, slice]:
        """Its cells in an array of the whole map."""
        return slice(self.row, self.row + self.rows), slice(self.column, self.column + self.columns)

    def empty_status(self) -> np.ndarray[Any, np.dtype[np.int8]]:
        """The statuses before anything is scored: OK where a value is to come, else ``NOT_ASKED``."""
        status = np.full((self.rows, self.columns), NOT_ASKED, np.int8)
        status[tuple(self.cells.T)] = RowStatus.OK
        return status


@dataclass(frozen=True)
class DenseGrid:
    """The cells of a dense map.

    Parameters
    ----------
    size : (int, int)
        Width and height of the slide in level-0 pixels.
    pitch_px : int
        Side of a cell in level-0 pixels; its position is pixel ``pitch_px // 2`` of it, in x and in y.
    first : (int, int)
        Row and column of the map's first cell among those that tile the slide.
    shape : (int, int)
        Rows and columns of the map.
    """

    size: tuple[int, int]
    pitch_px: int
    first: tuple[int, int]
    shape: tuple[int, int]

    @classmethod
    def over(cls, size: tuple[int, int], pitch_px: int, region: Rectangle | None = None) -> DenseGrid:
        """The cells whose positions lie on a slide, or in a region of it.

        Raises
        ------
        SpotError
            If no position does.
        """
        area = region.within(size) if region else Rectangle(0, 0, *size)
        half = pitch_px // 2
        # Cell i has its position at i·pitch + half: ``first`` is the first in the area, ``end`` the first behind it.
        first = [max(0, -((half - start) // pitch_px)) for start in (area.top, area.left)]
        end = [-((half - stop) // pitch_px) for stop in (area.top + area.height, area.left + area.width)]
        rows, columns = (max(0, stop - start) for start, stop in zip(first, end, strict=True))
        if not rows * columns:
            raise SpotError(f"region {area}: holds no position of a grid of {pitch_px} px; choose a larger region")
        return cls(size, pitch_px, (first[0], first[1]), (rows, columns))

    @property
    def origin_px(self) -> tuple[int, int]:
        """x, y of the first cell's first pixel."""
        return self.first[1] * self.pitch_px, self.first[0] * self.pitch_px

    def axis_px(self, axis: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """y (axis 0) or x (axis 1) of the positions along an axis of the map, in level-0 pixels."""
        return (self.first[axis] + np.arange(self.shape[axis])) * self.pitch_px + self.pitch_px // 2

    @property
    def blocks_each_way(self) -> tuple[int, int]:
        """Blocks above each other, and beside each other."""
        return -(-self.shape[0] // BLOCK_CELLS), -(-self.shape[1] // BLOCK_CELLS)

    @property
    def n_blocks(self) -> int:
        """Blocks of the map."""
        return math.prod(self.blocks_each_way)

    def blocks(self, mask: Mask, *, everywhere: bool = False) -> Iterator[Block]:
        """The blocks of the map, row by row, made one at a time.

        Parameters
        ----------
        mask : ndarray of bool, shape (h, w)
            Tissue, on an overview of the whole slide.
        everywhere : bool
            Score positions off the tissue too.
        """
        shares = TissueShares(mask)
        across = self.blocks_each_way[1]
        for number in range(self.n_blocks):
            row, column = (step * BLOCK_CELLS for step in divmod(number, across))
            rows, columns = min(BLOCK_CELLS, self.shape[0] - row), min(BLOCK_CELLS, self.shape[1] - column)
            tissue = self._tissue(shares, row, column, rows, columns)
            cells = np.argwhere(tissue | everywhere)
            yield Block(number, row, column, rows, columns, cells, tissue, self)

    def _tissue(self, shares: TissueShares, row: int, column: int, rows: int, columns: int) -> Mask:
        edges = []
        for axis, start, count in ((0, row, rows), (1, column, columns)):
            first = self.first[axis] + start
            # Edges of the block's cells, in sides of the slide.
            edges.append(np.arange(first, first + count + 1) * self.pitch_px / self.size[1 - axis])
        tissue: Mask = shares.between(edges[1], edges[0]) >= 0.5
        return tissue
