"""Compressed tiles of slides, decoded once: neighbouring spots share most of their pixels.

A cache that is bounded in bytes holds the tiles that were used last, of all slides and levels that are open; a reader
wrapped by :class:`CachedReader` decodes whole tiles, only those that the cache lacks, and puts together from them what
is asked for.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np
from m2ost_contract import ENV_TILE_CACHE_MIB

from .. import progress
from ..control_groups import memory_bytes
from ..errors import UnreadableSlide
from ..readers.base import Pixels, SlideReader
from .threads import Helpers

DEFAULT_CACHE_MIB = 512
"""A third more than the order of ``m2ost_preprocess.tiling.views.spatial_order`` keeps in use."""

MOST_OF_MEMORY = 1 / 8
"""Share of the memory that this process may have, of which tiles take no more where nobody says how much."""


@dataclass
class TilingCounts:
    """What a tiler did, counted.

    Attributes
    ----------
    spots : int
        Spots whose views were cut.
    kept_spots : int
        Spots whose views had been cut for another network, and were kept.
    regions : int
        Regions put together out of tiles.
    needed_px : int
        Pixels of the slide in the coarsest windows of these spots, each spot's for itself.
    decoded_tiles, decoded_px : int
        Compressed tiles that were decoded, and their pixels inside the slide. A plain image is one tile.
    cached_tiles : int
        Tiles that were needed for a region and not decoded for it.
    moved_bytes : int
        Bytes of pixels that were copied: into regions, and into views.
    """

    spots: int = 0
    kept_spots: int = 0
    regions: int = 0
    needed_px: int = 0
    decoded_tiles: int = 0
    decoded_px: int = 0
    cached_tiles: int = 0
    moved_bytes: int = 0

    def __iadd__(self, other: TilingCounts) -> TilingCounts:
        for count in fields(self):
            setattr(self, count.name, getattr(self, count.name) + getattr(other, count.name))
        return self


class TileCache:
    """Decoded tiles, least recently used first out.

    At most ``capacity_bytes`` of pixels are kept; a region that is being read holds all of its own besides. A tile
    larger than that is never kept.
    """

    def __init__(self, capacity_bytes: int = DEFAULT_CACHE_MIB << 20) -> None:
        self.capacity_bytes = capacity_bytes
        self._tiles: OrderedDict[Hashable, Pixels] = OrderedDict()
        self._nbytes = 0

    @classmethod
    def from_environment(cls) -> TileCache:
        """A cache of the size that the environment variable ``M2OST_TILE_CACHE_MIB`` gives.

        Without it, ``DEFAULT_CACHE_MIB``, or an eighth of the memory that a control group allows where that is less.

        Raises ``ValueError`` where that is not a whole number from 0 on.
        """
        usual = min(DEFAULT_CACHE_MIB, int(memory_bytes() * MOST_OF_MEMORY) >> 20)
        given = os.environ.get(ENV_TILE_CACHE_MIB, str(usual))
        if not given.isdecimal():
            raise ValueError(f"{ENV_TILE_CACHE_MIB} must be a whole number of MiB, not {given!r}")
        return cls(int(given) << 20)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels that are kept."""
        return self._nbytes

    def get(self, key: Hashable) -> Pixels | None:
        """The tile that was put under a key, (height, width, 3); None where it is not, or no longer, kept."""
        tile = self._tiles.get(key)
        if tile is not None:
            self._tiles.move_to_end(key)
        return tile

    def clear(self) -> None:
        """Let go of all tiles."""
        self._tiles.clear()
        self._nbytes = 0

    def put(self, key: Hashable, tile: Pixels) -> None:
        """Keep a tile, which owns its memory, under a new key; let go of others as the capacity demands."""
        self._tiles[key] = tile
        self._nbytes += tile.nbytes
        while self._nbytes > self.capacity_bytes:
            self._nbytes -= self._tiles.popitem(last=False)[1].nbytes


class CachedReader(SlideReader):
    """A slide whose tiles are kept, in a cache that may serve other slides too.

    ``key`` is the identity of the slide's content: another for another file, or the same file after a change.
    ``helpers`` decode and copy along; without them the thread that reads does it all.
    """

    def __init__(self, reader: SlideReader, cache: TileCache, key: Hashable, helpers: Helpers | None = None) -> None:
        self._reader, self._cache, self._key = reader, cache, key
        self._helpers = helpers or Helpers()
        self.name, self.path, self.size = reader.name, reader.path, reader.size
        self._counts = TilingCounts()
        self._is_new = True

    @property
    def cache_bytes(self) -> int:
        """Bytes of all tiles that its cache keeps, also of other slides."""
        return self._cache.nbytes

    def take_counts(self) -> TilingCounts:
        """What was counted since the last call: tiles decoded and found, and bytes moved."""
        taken, self._counts = self._counts, TilingCounts()
        return taken

    def read_at(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        """See :meth:`SlideReader.read_at`. Not to be written to."""
        return self.read_needed(level, left, top, width, height, np.array([(left, top, max(width, height))]))

    def read_needed(self, level: int, left: int, top: int, width: int, height: int, windows: Any) -> Pixels:
        """See :meth:`SlideReader.read_needed`. Not to be written to."""
        tile = self._reader.tile_size(level)
        if tile is None:
            # A plain image was decoded whole on opening, which the first read counts.
            if self._is_new:
                self._count(1, self.size[0] * self.size[1])
            else:
                self._counts.cached_tiles += 1
            self._is_new = False
            return self._reader.read_at(level, left, top, width, height)
        # Columns and rows of the tiles that the rectangle touches, the last included.
        first = np.array([left, top]) // tile
        last = np.array([left + width - 1, top + height - 1]) // tile
        # Of these, by row and column, the tiles that a window touches.
        needed = np.zeros((last - first + 1)[::-1], bool)
        starts = (windows[:, :2] // tile - first).clip(0)
        ends = ((windows[:, :2] + windows[:, 2:] - 1) // tile - first + 1).clip(0)
        for (column, row), (column_end, row_end) in zip(starts.tolist(), ends.tolist(), strict=True):
            needed[row:row_end, column:column_end] = True
        # What is not needed stays black; where all is, nothing has to be cleared first.
        out = (np.empty if needed.all() else np.zeros)((height, width, 3), np.uint8)
        rows = [
            self._row(level, tile, row, (np.flatnonzero(columns) + first[0]).tolist())
            for row, columns in enumerate(needed, start=int(first[1]))
        ]
        # Rows of tiles are decoded on several threads, but this one alone uses the cache and the counts.
        if self._helpers.threads:
            failed = threading.Event()
            self._helpers.read([partial(row.try_to_fill, out, (left, top), failed) for row in rows])
            for row in rows:
                self._keep(row)
        for row in rows:
            # What was wrong with one row may have been taken for another's fault: alone it is its own.
            if not row.is_filled:
                row.fill(out, (left, top))
                self._keep(row)
        self._counts.moved_bytes += out.nbytes
        return out

    def _row(self, level: int, tile: tuple[int, int], row: int, columns: list[int]) -> _Row:
        found = {column: self._cache.get((self._key, level, column, row)) for column in columns}
        tiles = {column: pixels for column, pixels in found.items() if pixels is not None}
        self._counts.cached_tiles += len(tiles)
        return _Row(self._reader, level, tile, row, tiles, _runs([column for column in columns if column not in tiles]))

    def _keep(self, row: _Row) -> None:
        for column in row.decoded:
            pixels = row.tiles[column]
            self._count(1, pixels.shape[0] * pixels.shape[1])
            self._cache.put((self._key, row.level, column, row.row), pixels)
        row.decoded = []

    def _count(self, tiles: int, px: int) -> None:
        self._counts.decoded_tiles += tiles
        self._counts.decoded_px += px

    def cold(self) -> CachedReader:
        """The same slide and helpers, with a cache of its own and nothing in it; not to be closed."""
        return CachedReader(self._reader, TileCache(self._cache.capacity_bytes), self._key, self._helpers)

    @property
    def failed_readers(self) -> tuple[str, ...]:
        """See :attr:`SlideReader.failed_readers`."""
        return self._reader.failed_readers

    @property
    def uncached(self) -> SlideReader:
        """See :class:`SlideReader`."""
        return self._reader

    @property
    def decodes_on_gpu(self) -> bool:
        """See :attr:`SlideReader.decodes_on_gpu`."""
        return self._reader.decodes_on_gpu

    def tile_size(self, level: int) -> tuple[int, int] | None:
        """See :meth:`SlideReader.tile_size`."""
        return self._reader.tile_size(level)

    def read_on_gpu(self, left: int, top: int, width: int, height: int) -> Any:
        """See :meth:`SlideReader.read_on_gpu`; nothing of it is kept, and what is asked for counts as decoded."""
        self._count(0, width * height)
        return self._reader.read_on_gpu(left, top, width, height)

    @property
    def levels(self) -> list[tuple[int, int]]:
        """See :attr:`SlideReader.levels`."""
        return self._reader.levels

    @property
    def resident_bytes(self) -> int:
        """See :attr:`SlideReader.resident_bytes`; the cache is not part of it."""
        return self._reader.resident_bytes

    def close(self) -> None:
        """Release the file."""
        self._reader.close()


@dataclass
class _Row:
    """One row of a rectangle's tiles: those at hand, runs of neighbours that are missing, and columns that are new."""

    reader: SlideReader
    level: int
    tile: tuple[int, int]
    row: int
    tiles: dict[int, Pixels]
    missing: list[tuple[int, int]]
    decoded: list[int] = field(default_factory=list)
    is_filled: bool = False

    def try_to_fill(self, out: Pixels, origin: tuple[int, int], failed: threading.Event) -> None:
        """As :meth:`fill`; says when it failed, and does nothing once any row has."""
        if failed.is_set():
            return
        try:
            self.fill(out, origin)
        except UnreadableSlide:
            failed.set()

    def fill(self, out: Pixels, origin: tuple[int, int]) -> None:
        """Decode what is missing, each run by one call, and copy all tiles to where they lie."""
        while self.missing:
            self._decode(*self.missing[0])
            del self.missing[0]
        for column, pixels in self.tiles.items():
            _copy_overlap(pixels, (column * self.tile[0], self.row * self.tile[1]), out, origin)
        self.is_filled = True

    def _decode(self, first: int, count: int) -> None:
        (tile_width, tile_height), (level_width, level_height) = self.tile, self.reader.levels[self.level]
        x, y = first * tile_width, self.row * tile_height
        width, height = min(count * tile_width, level_width - x), min(tile_height, level_height - y)
        block = self.reader.read_at(self.level, x, y, width, height)
        progress.beat()
        for i in range(count):
            # A copy each: a view would keep the whole run in memory as long as one of its tiles is kept.
            self.tiles[first + i] = block[:, i * tile_width : (i + 1) * tile_width].copy()
            self.decoded.append(first + i)


def _runs(columns: list[int]) -> list[tuple[int, int]]:
    """(first, count) of every run of neighbours among ascending numbers."""
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and column == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((column, 1))
    return runs


def _copy_overlap(source: Pixels, at: tuple[int, int], target: Pixels, origin: tuple[int, int]) -> None:
    """Copy what lies in both: ``source`` has its first pixel at ``at``, ``target`` at ``origin``, both x, y."""
    x0, y0 = max(at[0], origin[0]), max(at[1], origin[1])
    x1 = min(at[0] + source.shape[1], origin[0] + target.shape[1])
    y1 = min(at[1] + source.shape[0], origin[1] + target.shape[0])
    target[y0 - origin[1] : y1 - origin[1], x0 - origin[0] : x1 - origin[0]] = source[
        y0 - at[1] : y1 - at[1], x0 - at[0] : x1 - at[0]
    ]
