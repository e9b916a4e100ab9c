"""One slide in, one expression map out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_preprocess.decoder import Decoder, SlideInfo
from m2ost_preprocess.slides.spot_places import check_places
from m2ost_preprocess.slides.spots import Spots, read_spots

from .errors import InputError, OutputError
from .files import check_writable, metadata_path, read_metadata, write_result
from .metadata import SpotsScored, level_metadata, run_metadata
from .options import PredictOptions, check_genes, check_sending, view_scale
from .results import SlideResult
from .spot_choice import grid_on_mask, spots_within
from .stream import SpotBatch, SpotStream
from .timeline import NoTimeline, Timeline
from .timing import stage


@dataclass(frozen=True)
class PredictReport:
    """What a run made.

    Parameters
    ----------
    result : SlideResult
    metadata : dict
        The content of ``<name>.json``.
    files : tuple of Path
        Every file written, the table last.
    """

    result: SlideResult
    metadata: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        """Whether every spot has a value."""
        return bool((self.result.status == 0).all())


async def predict_slide(
    address: str,
    options: PredictOptions,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    timeline: Timeline | None = None,
) -> PredictReport:
    """Score one slide and write its results.

    Parameters
    ----------
    address : str
        ``host:port`` of a server's gRPC service.
    options : PredictOptions
    on_progress : callable, optional
        Called with (spots done, spots in all), also once before the first.
    timeline : Timeline, optional
        Where stages and requests are noted.

    Returns
    -------
    PredictReport
        ``<name>.h5ad``, ``<name>.json``, ``<name>.pca.png``, a map for every gene asked for, and the exports.

    Raises
    ------
    InputError
        If a gene is not in the panel, views cannot be cut as asked, an export needs what is not installed, the spot
        file holds no spot, the mask cannot be used or is given beside a spot file, or the region holds none of the
        spots that there are. Told before anything is scored.
    OutputError
        If a result cannot be written. Checked before work begins; nothing half-written is left.
    SpotError
        If the spot file cannot be used, its positions cannot be pixels of the slide, or the region lies outside it; or
        if the network predicts a slide as a whole, and the file does not tell the spots' places on the array.
    PositionsError
        If the network does not know these places, or takes fewer spots of a slide.
    SlideError, RequestRejected, ServerUnavailable, ReleaseChanged
        As their modules say.
    """
    timeline = timeline or NoTimeline()
    options.exports.check_installed()
    check_writable(options.out)
    name = result_name(options.source or options.slide)
    seconds: dict[str, float] = {}
    if options.mask is not None and options.spots_file is not None:
        raise InputError("a mask is for a grid, and a file of spots has its own positions; give one of them")
    spots = read_spots(options.spots_file) if options.spots_file else None
    async with SpotStream(address, options.stream, timeline=timeline) as stream:
        check_genes(options.genes, stream.info)
        check_sending(options.send_pixels, stream.info)
        local = Decoder(stream.info.views) if options.send_pixels else None
        try:
            pitch_um = options.pitch_um if spots is None and options.mask is None else None
            with timeline.span("stages", "describe"), stage(seconds, "describe_s"):
                if local:
                    slide = await asyncio.to_thread(
                        local.describe, Path(options.slide), pitch_um=pitch_um, mpp=options.mpp
                    )
                else:
                    slide = await stream.slide_info(options.slide, pitch_um=pitch_um, mpp=options.mpp)
            scale = view_scale(options.view_mpp, slide, stream.info)
            check_same_slide(options.out, name, slide)
            if options.mask is not None:
                spots = await asyncio.to_thread(grid_on_mask, options.mask, slide, options.pitch_um)
            elif spots is None:
                source = f"grid, pitch {options.pitch_um:g} µm"
                spots = Spots(slide.centers, slide.names, slide.pitch_px, source)
            else:
                check_places(
                    spots.centers, slide.size, lambda: slide.thumbnail, source=spots.source, columns=spots.columns
                )
            if options.region:
                spots = spots_within(spots, options.region, slide.size)
            with timeline.span("stages", "score"), stage(seconds, "score_s"):
                cutting: dict[str, Any] = {"scale": scale, "pyramid": options.pyramid}
                if local:
                    batches = stream.predict_local(Path(options.slide), spots.centers, local, **cutting)
                elif stream.info.slide_level:
                    batches = stream.predict_whole(options.slide, spots.centers, spots.places(), **cutting)
                else:
                    batches = stream.predict(options.slide, spots.centers, **cutting)
                expression, status = await _collect(batches, len(spots), len(stream.info.genes), on_progress)
        finally:
            if local:
                await asyncio.to_thread(local.close)
        result = SlideResult(name, slide, stream.info, spots, expression, status)
        metadata = run_metadata(
            options,
            slide,
            stream.info,
            spots=SpotsScored(len(spots), spots.source, result.counts_by_status()),
            scale=scale,
            server=address,
            retries=stream.retries,
            seconds=seconds,
        )
        metadata |= level_metadata(stream.info, spots)
    exports = {}
    if options.exports.any:
        from .reports import writers  # what draws takes seconds to import

        exports = writers(options.exports, result, metadata, options.genes)
    with timeline.span("stages", "write"):
        files = await asyncio.to_thread(write_result, result, metadata, options.genes, options.out, exports)
    return PredictReport(result, metadata, files)


def result_name(slide: str) -> str:
    """Stem of a slide's result files."""
    return Path(os.path.abspath(slide)).stem


async def _collect(
    batches: AsyncGenerator[SpotBatch, None],
    n_spots: int,
    n_genes: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[Any, Any]:
    expression = np.full((n_spots, n_genes), np.nan, np.float32)
    status = np.zeros(n_spots, np.int32)
    done = 0
    if on_progress:
        on_progress(done, n_spots)
    async with aclosing(batches):
        async for batch in batches:
            expression[batch.rows], status[batch.rows] = batch.expression, batch.status
            done += len(batch.rows)
            if on_progress:
                on_progress(done, n_spots)
    if done != n_spots:
        raise OutputError(f"{done} of {n_spots} spots came back; nothing was written")
    return expression, status


def check_same_slide(out: Path, name: str, slide: SlideInfo) -> None:
    """Refuse to replace the result of another slide that has the same name."""
    try:
        before = read_metadata(out, name)["slide_facts"]["fingerprint"]
    except (KeyError, TypeError):
        return
    if before != slide.fingerprint:
        path = metadata_path(out, name)
        raise OutputError(f"{path} is the result of another slide of that name; choose another --out or remove it")
