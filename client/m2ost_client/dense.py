"""A dense expression map of one slide, of any size in bounded memory."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import EngineInfo
from m2ost_preprocess.decoder import SlideInfo
from m2ost_preprocess.slides.dense_grid import DenseGrid
from m2ost_preprocess.slides.rectangle import Rectangle
from m2ost_preprocess.slides.tissue import Mask, find_tissue

from .dense_blocks import BlockMap, ExactMap, LevelRun
from .dense_levels import RefinedMap
from .dense_store import DenseStore, new_store_path
from .errors import InputError
from .files import check_writable
from .metadata import SpotsScored, run_metadata
from .options import PredictOptions, check_genes, view_scale
from .predict import check_same_slide, result_name
from .refinement import steps_of
from .results import status_name
from .stream import SpotStream
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
    tolerance_sd : float, optional
        Compute only places that interpolation would miss by so many standard deviations of a gene over the map, or
        more: see :mod:`m2ost_client.refinement`. By default all are computed.

    Raises
    ------
    InputError
        If the tolerance is no number from 0 on, or the pitch too large for one.
    """

    pitch_px: int = 16
    everywhere: bool = False
    genes: tuple[str, ...] = ()
    tolerance_sd: float | None = None

    def __post_init__(self) -> None:
        if self.tolerance_sd is None:
            return
        if not 0 <= self.tolerance_sd < math.inf:
            raise InputError(f"a tolerance of {self.tolerance_sd} standard deviations: give a number from 0 on")
        steps_of(self.pitch_px)


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
    with the blocks that it has not stored. With a tolerance the map is passed over once for every level of refinement,
    and says what was computed and how far interpolation was off.

    Parameters
    ----------
    address : str
        ``host:port`` of a server's gRPC service.
    options : PredictOptions
        The slide, its region, resolution and stream, and where the map goes.
    dense : DenseOptions
    on_progress : callable, optional
        Called with (positions done, positions in all), also once before the first. With a tolerance these are the
        positions to compute: of the levels so far, and without those that an earlier run has computed.
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
        stream.check_level()
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
        blocks = partial(grid.blocks, mask, everywhere=dense.everywhere)
        refined = dense.tolerance_sd is not None
        with DenseStore(options.out, name, grid, genes, attributes, refined=refined) as store:
            done = sum(sum(by_status.values()) for by_status in store.done.values()) if not refined else 0
            progress = _Progress(on_progress, done)
            made: BlockMap = (
                ExactMap(blocks, store)
                if dense.tolerance_sd is None
                else RefinedMap(grid, blocks, store, len(genes), dense.tolerance_sd)
            )
            columns, most_open = [engine.genes.index(gene) for gene in genes], 0
            with timeline.span("stages", "score"), stage(seconds, "score_s"):
                for level in range(made.begin(), len(made.steps)):
                    run = LevelRun(made, level, columns)
                    progress.expect(await asyncio.to_thread(run.settle))
                    batches = stream.predict_blocks(options.slide, run.take(), scale=scale, pyramid=options.pyramid)
                    async with aclosing(batches):
                        async for number, batch in batches:
                            with timeline.span("blocks", "put", block=number):
                                progress.advance(await run.put(number, batch))
                    run.check_whole()
                    most_open = max(most_open, run.most_open)
                    await asyncio.to_thread(made.end, level)
            by_status = sum((Counter(found) for found in store.done.values()), Counter[str]())
            metadata = run_metadata(
                options,
                slide,
                engine,
                spots=SpotsScored(by_status.total(), attributes["positions"], dict(by_status)),
                scale=scale,
                server=address,
                retries=stream.retries,
                seconds=seconds,
            )
            facts = await asyncio.to_thread(made.facts)
            metadata["dense"] = {"rows": grid.shape[0], "columns": grid.shape[1], **attributes["grid"], **facts}
            files = await asyncio.to_thread(partial(store.finish, metadata, **facts))
    return DenseReport(metadata, files, most_open)


class _Progress:
    """Positions done and known so far, told to whoever asked."""

    def __init__(self, tell: Callable[[int, int], None] | None, done: int) -> None:
        self._tell, self._done, self._total = tell, done, done

    def expect(self, more: int) -> None:
        """So many are to come."""
        self._total += more
        self.advance(0)

    def advance(self, more: int) -> None:
        """So many are done."""
        self._done += more
        if self._tell:
            self._tell(self._done, self._total)


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
    tolerance = {} if dense.tolerance_sd is None else {"tolerance_sd": dense.tolerance_sd}
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
        **tolerance,
        "level0_px_per_view_px": scale,
        "target": engine.target,
        "trained": engine.trained,
        "precision": engine.precision,
        "checkpoint_sha256": engine.checkpoint_sha256,
        "release_sha256": engine.release_sha256,
        "engine": engine.runs_on,
    }
