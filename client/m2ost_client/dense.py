"""A dense expression map of one slide, of any size in bounded memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import EngineInfo
from m2ost_preprocess.decoder import SlideInfo
from m2ost_preprocess.slides.dense_grid import Block, DenseGrid
from m2ost_preprocess.slides.rectangle import Rectangle
from m2ost_preprocess.slides.tissue import Mask, find_tissue

from .answers import Expression
from .dense_store import DenseStore, empty_block, new_store_path
from .errors import InputError, OutputError
from .files import check_writable
from .metadata import SpotsScored, run_metadata
from .options import PredictOptions, check_genes, view_scale
from .predict import check_same_slide, result_name
from .results import status_name
from .stream import SpotBatch, SpotStream
from .timeline import NoTimeline, Timeline
from .timing import stage


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """What a dense map holds.

    Parameters
    ----------
    pitch_px : int
        Side of its cells in level-0 pixels.
    everywhere : bool
        Score cells off the tissue too.
    genes : tuple of str
        Genes to keep; by default all.
    """

    pitch_px: int = 16
    everywhere: bool = False
    genes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DenseReport:
    """What a run made.

    Parameters
    ----------
    metadata : dict
        The content of ``<name>.dense.json``.
    files : tuple of Path
        Every file written, the map last.
    most_open_blocks : int
        Most blocks that were held in memory at once.
    """

    metadata: dict[str, Any]
    files: tuple[Path, ...]
    most_open_blocks: int

    @property
    def complete(self) -> bool:
        """Whether every position has a value."""
        return set(self.metadata["spots"]["by_status"]) <= {status_name(0)}


def check_new(folder: Path, slide: str) -> str:
    """Make the output folder, before any work is done.

    Returns
    -------
    str
        Stem of the files of the slide's dense map.

    Raises
    ------
    OutputError
        If nothing can be written there, or there is a map of that name.
    """
    check_writable(folder)
    name = f"{result_name(slide)}.dense"
    new_store_path(folder, name)
    return name


async def predict_dense(
    address: str,
    options: PredictOptions,
    dense: DenseOptions,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    timeline: Timeline | None = None,
) -> DenseReport:
    """Score a slide, or a region of it, at every cell of a fine grid, and stream the map to Zarr.

    Cells of which at least half is tissue are scored, as on a grid of spots. Memory does not grow with the map: blocks
    of 64 × 64 cells are computed a few at a time, and stored as they become complete. A run that was killed goes on
    with the blocks that it has not stored.

    Parameters
    ----------
    address : str
        ``host:port`` of a server's gRPC service.
    options : PredictOptions
        The slide, its region, resolution and stream, and where the map goes.
    dense : DenseOptions
    on_progress : callable, optional
        Called with (positions done, positions in all), also once before the first.
    timeline : Timeline, optional
        Where stages and requests are noted.

    Returns
    -------
    DenseReport
        ``<name>.dense.zarr`` (see :mod:`m2ost_client.dense_store`) and ``<name>.dense.json``.

    Raises
    ------
    InputError
        If a gene is not in the panel, views cannot be cut as asked, or the tissue lies outside the region. Told before
        anything is scored.
    SpotError
        If the region lies outside the slide, or holds no position.
    OutputError
        If the map exists, is being made by another run, or cannot be written.
    UnknownTissue
        If nobody can tell where the tissue is, and not every cell is asked for.
    SlideError, RequestRejected, ServerUnavailable, ReleaseChanged
        As their modules say.
    """
    name = check_new(options.out, options.source or options.slide)
    seconds: dict[str, float] = {}
    timeline = timeline or NoTimeline()
    async with SpotStream(address, options.stream, timeline=timeline) as stream:
        engine = stream.info
        check_genes(dense.genes, engine)
        genes = dense.genes or engine.genes
        with timeline.span("stages", "describe"), stage(seconds, "describe_s"):
            slide = await stream.slide_info(options.slide, mpp=options.mpp)
        scale = view_scale(options.view_mpp, slide, engine)
        check_same_slide(options.out, name, slide)
        grid = DenseGrid.over(slide.size, dense.pitch_px, options.region)
        tissue = find_tissue(slide.thumbnail)
        mask = tissue.mask if dense.everywhere else tissue.known(options.source or options.slide)
        if options.region and not dense.everywhere:
            await asyncio.to_thread(_check_tissue, grid, mask, options.region)
        attributes = _attributes(options, dense, slide, engine, grid, scale)
        with DenseStore(options.out, name, grid, genes, attributes) as store:
            mapping = _Mapping(grid, mask, dense, store, [engine.genes.index(g) for g in genes])
            with timeline.span("stages", "score"), stage(seconds, "score_s"):
                total = await asyncio.to_thread(mapping.count) if on_progress else 0
                batches = stream.predict_blocks(options.slide, mapping.take(), scale=scale, pyramid=options.pyramid)
                async with aclosing(batches):
                    if on_progress:
                        on_progress(mapping.scored, total)
                    async for number, batch in batches:
                        with timeline.span("blocks", "put", block=number):
                            await mapping.put(number, batch)
                        if on_progress:
                            on_progress(mapping.scored, total)
            mapping.check_whole()
            metadata = run_metadata(
                options,
                slide,
                engine,
                spots=SpotsScored(mapping.scored, attributes["positions"], dict(mapping.by_status)),
                scale=scale,
                server=address,
                retries=stream.retries,
                seconds=seconds,
            )
            metadata["dense"] = {"rows": grid.shape[0], "columns": grid.shape[1], **attributes["grid"]}
            files = await asyncio.to_thread(store.finish, metadata)
    return DenseReport(metadata, files, mapping.most_open)


def _check_tissue(grid: DenseGrid, mask: Mask, region: Rectangle) -> None:
    """Refuse a region without a cell to score on a slide that has tissue."""
    if not mask.any() or any(len(block.cells) for block in grid.blocks(mask)):
        return
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    x = np.array([columns[0], columns[-1] + 1]) * grid.size[0] / mask.shape[1]
    y = np.array([rows[0], rows[-1] + 1]) * grid.size[1] / mask.shape[0]
    raise InputError(
        f"region {region}: no cell of the map, {grid.pitch_px} px wide, is at least half tissue in it; tissue was "
        f"found in x {x[0]:.0f} to {x[1]:.0f}, y {y[0]:.0f} to {y[1]:.0f}; choose another region, or give --everywhere"
    )


def _attributes(
    options: PredictOptions,
    dense: DenseOptions,
    slide: SlideInfo,
    engine: EngineInfo,
    grid: DenseGrid,
    scale: float,
) -> dict[str, Any]:
    """What the map says of itself."""
    where = "every cell" if dense.everywhere else "cells of which at least half is tissue"
    return {
        "slide": options.source or options.slide,
        "slide_fingerprint": slide.fingerprint,
        "slide_size_px": list(slide.size),
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "grid": {
            "pitch_px": grid.pitch_px,
            "pitch_um": None if slide.mpp is None else grid.pitch_px * slide.mpp,
            "origin_px": list(grid.origin_px),
        },
        "region": str(options.region) if options.region else None,
        "positions": f"dense grid, pitch {grid.pitch_px} px, {where}",
        "level0_px_per_view_px": scale,
        "target": engine.target,
        "trained": engine.trained,
        "precision": engine.precision,
        "checkpoint_sha256": engine.checkpoint_sha256,
        "release_sha256": engine.release_sha256,
        "engine": engine.runs_on,
    }


@dataclass
class _OpenBlock:
    """A block some of whose positions are scored."""

    block: Block
    expression: Expression
    status: np.ndarray[Any, np.dtype[np.int8]]
    waiting: int


class _Mapping:
    """From blocks to be scored to blocks stored; holds those in between.

    Attributes
    ----------
    scored : int
        Positions scored, by an earlier run too.
    by_status : Counter
        Positions of stored blocks by the name of their status.
    most_open : int
        Most blocks held at once.
    """

    def __init__(self, grid: DenseGrid, mask: Mask, dense: DenseOptions, store: DenseStore, columns: list[int]) -> None:
        self._grid, self._mask, self._dense, self._store = grid, mask, dense, store
        self._columns = columns
        self._taken: dict[int, _OpenBlock] = {}
        self.most_open = 0
        self.by_status: Counter[str] = Counter()
        for before in store.done.values():
            self.by_status.update(before)
        self.scored = self.by_status.total()

    def _blocks(self) -> Iterator[Block]:
        return self._grid.blocks(self._mask, everywhere=self._dense.everywhere)

    def count(self) -> int:
        """Positions to score, by an earlier run too."""
        return sum(len(block.cells) for block in self._blocks())

    def take(self) -> Iterator[Any]:
        """The positions of the next block that has any and is not stored yet; the block is open from then on."""
        todo = (block for block in self._blocks() if len(block.cells) and block.number not in self._store.done)
        for ordinal, block in enumerate(todo):
            expression = empty_block(block, len(self._columns))
            self._taken[ordinal] = _OpenBlock(block, expression, block.empty_status(), len(block.cells))
            self.most_open = max(self.most_open, len(self._taken))
            yield block.centers

    async def put(self, ordinal: int, batch: SpotBatch) -> None:
        """Take in a batch; store the block once it is complete."""
        taken = self._taken[ordinal]
        rows, columns = taken.block.cells[batch.rows].T
        taken.expression[:, rows, columns] = batch.expression[:, self._columns].T
        taken.status[rows, columns] = batch.status
        taken.waiting -= len(batch.rows)
        self.scored += len(batch.rows)
        if taken.waiting:
            return
        found = Counter(status_name(status) for status in taken.status[tuple(taken.block.cells.T)])
        await asyncio.to_thread(self._store.write, taken.block, taken.expression, taken.status, dict(found))
        del self._taken[ordinal]
        self.by_status.update(found)

    def check_whole(self) -> None:
        """Raise an ``OutputError`` if a block has not come back."""
        if self._taken:
            raise OutputError(f"{len(self._taken)} blocks did not come back whole; run it again, it goes on from there")
