"""Ways to score the same spots: served, and by bare inference on views that lie ready in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_client.stream import SpotStream, StreamOptions
from m2ost_contract import EXPRESSION, ONNX_FILE, Manifest, as_centers
from m2ost_preprocess.decoder import decoded_slide
from m2ost_preprocess.slides.spots import Spots, grid
from m2ost_preprocess.slides.tissue import MASK_PX, tissue_mask
from m2ost_preprocess.tiling.views import spatial_order
from m2ost_serving.engine.onnx import cpu_session

from .errors import TargetError
from .rounds import Seconds, Spread, interleave, seconds_of


def bare_runner(release: Path, slide: Path, centers: Any, batch_rows: int) -> Callable[[], Any]:
    """Score ready views with ONNX Runtime; returns the expression in the order of ``centers``."""
    geometry = Manifest.read(release).engine.views
    session = cpu_session(release / ONNX_FILE)
    with decoded_slide(slide, geometry=geometry) as source:
        views = source.views(centers)

    def run() -> Any:
        parts = []
        for first in range(0, len(centers), batch_rows):
            batch = {n: v[first : first + batch_rows] for n, v in zip(geometry.names, views, strict=True)}
            parts.append(session.run([EXPRESSION], batch)[0])
        return np.concatenate(parts)

    return run


def served_runner(address: str, slide: str, centers: Any, options: StreamOptions) -> Callable[[], Any]:
    """Score slide coordinates through the server."""

    async def stream() -> Any:
        async with SpotStream(address, options) as client:
            expression = np.empty((len(centers), len(client.info.genes)), np.float32)
            async for batch in client.predict(slide, centers):
                expression[batch.rows] = batch.expression
        return expression

    return lambda: asyncio.run(stream())


def spots_to_score(slide: Path, pitch_um: float, *, mpp: float | None = None) -> Any:
    """Centres of a grid over a slide's tissue, in the order in which a client sends them.

    Parameters
    ----------
    slide : Path
    pitch_um : float
        Pitch of the grid in µm.
    mpp : float, optional
        µm/px of the slide, in place of what the file says.

    Returns
    -------
    ndarray of int32, shape (n, 2)
        n > 0.

    Raises
    ------
    TargetError
        If µm/px is unknown, or there are no spots.
    """
    centers = as_centers(grid_of_spots(slide, pitch_um, mpp=mpp)[0].centers)
    return centers[spatial_order(centers)]


def grid_of_spots(slide: Path, pitch_um: float, *, mpp: float | None = None) -> tuple[Spots, float]:
    """A grid over a slide's tissue, and the slide's µm/px; parameters and errors as of :func:`spots_to_score`."""
    with decoded_slide(slide) as source:
        mpp = source.mpp if mpp is None else mpp
        if mpp is None:
            raise TargetError(f"{slide}: carries no µm/px; give it with --mpp, or measure on a slide that does")
        spots = grid(source.size, tissue_mask(source.thumbnail(MASK_PX)), pitch_um / mpp)
    if not len(spots):
        raise TargetError(
            f"{slide}: no spots at a pitch of {pitch_um:g} µm; choose another slide or a smaller --pitch-um"
        )
    return spots, mpp


def score_in_turn(
    runners: Mapping[str, Callable[[], Any]],
    spots: int,
    rounds: int,
    *,
    processor_s: Mapping[str, Callable[[], float]] | None = None,
) -> dict[str, Any]:
    """Time every way to score the same spots, in turn, after one untimed run of each.

    Parameters
    ----------
    runners : mapping of str to callable
        Name → scores all spots and returns their expression; ``bare`` and ``served`` are among them.
    spots : int
        Spots that each scores.
    rounds : int
    processor_s : mapping of str to callable, optional
        Name → processor time so far, in seconds, of the processes that work for it beside this one.

    Returns
    -------
    dict
        Facts of the rounds, ``spots_per_s`` by name, ``ratios`` of served to each other (of the same round), and
        ``max_abs_diff_to_bare``. With ``processor_s`` also ``ratios_by_processor_time``.
    """
    results = {name: run() for name, run in runners.items()}
    elsewhere = processor_s or {}
    timed = interleave({name: partial(_seconds, run, elsewhere.get(name)) for name, run in runners.items()}, rounds)
    by_processor = {}
    if processor_s is not None:
        ratios = timed.map(lambda seconds: 1 / seconds.processor).ratios("served")
        by_processor = {"ratios_by_processor_time": _of_served(ratios)}
    rates = timed.map(lambda seconds: spots / seconds.clock)
    return {
        **timed.facts(),
        "spots": spots,
        "spots_per_s": rates.spreads(),
        "ratios": _of_served(rates.ratios("served")),
        **by_processor,
        "max_abs_diff_to_bare": {n: float(np.abs(r - results["bare"]).max()) for n, r in results.items()},
    }


def _seconds(run: Callable[[], object], elsewhere: Callable[[], float] | None) -> Seconds:
    before = elsewhere() if elsewhere else 0.0
    here = seconds_of(run)
    return here if elsewhere is None else Seconds(here.clock, here.processor + elsewhere() - before)


def _of_served(ratios: Mapping[str, Spread]) -> dict[str, Spread]:
    return {f"served/{other}": ratio for other, ratio in ratios.items() if other != "served"}
