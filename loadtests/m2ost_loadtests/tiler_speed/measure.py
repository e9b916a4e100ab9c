"""The measurements: tilers in turn, the whole path against its slower half, and what lower levels change."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import m2ost_contract as contract
import numpy as np
from m2ost_client.command import ServerOptions
from m2ost_client.options import PredictOptions
from m2ost_client.predict import predict_slide
from m2ost_client.stream import StreamOptions
from m2ost_client.supervisor import TritonServer
from m2ost_contract import EXPRESSION, Manifest
from m2ost_preprocess.decoder import DecodedSlide
from m2ost_preprocess.engine.onnx import cpu_session
from m2ost_preprocess.slides import SlideRoots
from m2ost_preprocess.tiles import TilingCounts

from ..errors import TargetError
from ..machine import spread
from ..served_vs_bare import bare_runner, spots_to_score
from .layouts import layouts
from .ways import AGAINST, BATCH_ROWS, WINDOW_PX, all_cores, collect, kept_decoder, ours, ways

BASELINE_SPOTS = 64
"""Spots that a baseline is timed on: neighbours from the middle of the layout, for they too keep some tiles."""

Progress = Callable[[str], None]


def compare_tilers(slide: Path, rounds: int, tell: Progress) -> list[dict[str, Any]]:
    """Time every way on every layout, in turn.

    Parameters
    ----------
    slide : Path
        A tiled slide that carries µm/px.
    rounds : int
    tell : callable
        Told what is being measured.

    Returns
    -------
    list of dict
        A layout each: milliseconds a spot by way, our counts, ratios to ours on as many cores in the same round, and
        whether all views of the inner spots are equal bit by bit.

    Raises
    ------
    TargetError
        If the slide carries no µm/px.
    SlideError
        If it cannot be read.
    """
    source = DecodedSlide(kept_decoder(0), slide.resolve())
    if source.mpp is None:
        raise TargetError(f"{slide}: carries no µm/px; measure on a slide that does")
    tables = []
    for name, centers in layouts(source.size, source.mpp).items():
        tell(name)
        middle = len(centers) // 2
        sample = centers[middle : middle + BASELINE_SPOTS]
        counts = TilingCounts()
        deque(ours(slide, centers, counts, threads=all_cores()), maxlen=0)
        inner = _inner(source.size, sample)
        expected = collect(ours(slide, sample))
        equal = {
            way: all(
                np.array_equal(a[inner], b[inner]) for a, b in zip(collect(run(slide, sample)), expected, strict=True)
            )
            for way, run in ways().items()
        }
        ms: dict[str, list[float]] = {way: [] for way in ways()}
        for _ in range(rounds):
            for way, run in ways().items():
                spots = sample if way in AGAINST else centers
                ms[way].append(1000 * _seconds(run(slide, spots)) / len(spots))
        tables.append(
            {
                "layout": name,
                "spots": len(centers),
                "baseline_spots": len(sample),
                "ms_a_spot": {way: spread(values) for way, values in ms.items()},
                "times_as_fast": {
                    way: spread([theirs / mine for theirs, mine in zip(ms[way], ms[AGAINST[way]], strict=True)])
                    for way in ms
                    if way in AGAINST
                },
                "equal": equal,
                "counts": asdict(counts),
                "decoded_over_needed": counts.decoded_px / needed_px(source.size, source.tile, centers),
            }
        )
    return tables


def _seconds(batches: Iterator[object]) -> float:
    began = time.perf_counter()
    deque(batches, maxlen=0)
    return time.perf_counter() - began


def _inner(size: tuple[int, int], centers: Any) -> Any:
    """Spots whose windows lie inside the slide: outside it every library has a colour of its own."""
    low, high = WINDOW_PX // 2, np.array(size) - WINDOW_PX // 2
    return ((centers >= low) & (centers <= high)).all(axis=1)


def needed_px(size: tuple[int, int], tile: tuple[int, int] | None, centers: Any) -> int:
    """Pixels of the compressed tiles of a slide that the windows of spots touch, each tile once."""
    width, height = size
    if tile is None:
        return width * height
    touched = {
        (column, row)
        for x, y in (np.asarray(centers) - WINDOW_PX // 2).tolist()
        for column in range(max(x, 0) // tile[0], min(x + WINDOW_PX - 1, width - 1) // tile[0] + 1)
        for row in range(max(y, 0) // tile[1], min(y + WINDOW_PX - 1, height - 1) // tile[1] + 1)
    }
    return sum(min(tile[0], width - column * tile[0]) * min(tile[1], height - row * tile[1]) for column, row in touched)


def compare_whole_path(release: Path, slide: Path, pitch_um: float, rounds: int) -> dict[str, Any]:
    """From file to table through a server, against bare inference and bare decoding of the same tiles.

    Parameters
    ----------
    release : Path
    slide : Path
    pitch_um : float
        Pitch of the grid over the tissue, in µm.
    rounds : int

    Returns
    -------
    dict
        Seconds of each, and the share that the slower of the two bare halves has of the whole.
    """
    slide = slide.resolve()
    source = DecodedSlide(kept_decoder(0), slide)
    centers = spots_to_score(slide, pitch_um)
    seconds: dict[str, list[float]] = {"file to table": [], "bare inference": [], "bare decoding": []}
    options = ServerOptions(release=release, roots=SlideRoots({"bench": slide.parent}))
    with TritonServer(options) as server, tempfile.TemporaryDirectory() as out:
        stream = StreamOptions(batch_rows=BATCH_ROWS)
        predict = PredictOptions(slide=f"bench/{slide.name}", out=Path(out), pitch_um=pitch_um, stream=stream)
        runs: dict[str, Callable[[], object]] = {
            "file to table": lambda: asyncio.run(predict_slide(server.address, predict)),
            "bare inference": bare_runner(release, slide, centers, BATCH_ROWS),
            "bare decoding": lambda: _decode(source, centers),
        }
        for i in range(rounds + 1):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                if i > 0:  # the first time is a warm-up
                    seconds[name].append(time.perf_counter() - began)
    rounds_s = zip(*seconds.values(), strict=True)
    return {
        "spots": len(centers),
        "pitch_um": pitch_um,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "slower_half_over_whole": spread([max(engine, decode) / whole for whole, engine, decode in rounds_s]),
    }


def _decode(slide: DecodedSlide, centers: Any) -> None:
    """Decode the tiles that spots need, each once."""
    tile = slide.tile
    if tile is None:
        return
    low = np.maximum(centers.min(axis=0) - WINDOW_PX // 2, 0)
    high = np.minimum(centers.max(axis=0) + WINDOW_PX // 2, slide.size)
    for top in range(int(low[1]) // tile[1] * tile[1], int(high[1]), tile[1]):
        left = int(low[0]) // tile[0] * tile[0]
        slide.read(left, top, int(high[0]) - left, min(tile[1], slide.size[1] - top))


def lower_levels(release: Path, slide: Path, spots: int, rounds: int) -> dict[str, Any]:
    """What views from lower levels save, and what they change in the predicted expression.

    Parameters
    ----------
    release : Path
    slide : Path
        With a pyramid.
    spots : int
        At most so many of a 200-µm grid over the tissue.
    rounds : int

    Returns
    -------
    dict
        Pixels decoded with and without, and how much faster the views are cut on one core; Pearson r per gene across
        spots between the two, and the largest difference in units of the gene's standard deviation.
    """
    centers = spots_to_score(slide, 200.0)[:spots]
    session = cpu_session(release / contract.MODEL_ENGINE / "1" / "model.onnx")
    names = Manifest.read(release).engine.views.names
    expression, decoded = [], []
    for pyramid in (False, True):
        counts = TilingCounts()
        batches = ours(slide, centers, counts, pyramid=pyramid)
        parts = [session.run([EXPRESSION], dict(zip(names, views, strict=True)))[0] for views in batches]
        expression.append(np.concatenate(parts).astype(np.float64))
        decoded.append(counts.decoded_px)
    native, lower = expression
    faster = [_seconds(ours(slide, centers)) / _seconds(ours(slide, centers, pyramid=True)) for _ in range(rounds)]
    r = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(native.T, lower.T, strict=True)]
    return {
        "spots": len(centers),
        "decoded_px": {"level 0": decoded[0], "lower levels": decoded[1]},
        "r_per_gene": {"min": min(r), "median": float(np.median(r))},
        "times_as_fast": spread(faster),
        "max_difference_sd": float((np.abs(native - lower) / native.std(axis=0)).max()),
    }
