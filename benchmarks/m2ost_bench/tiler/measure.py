"""The measurements: tilers in turn, the whole path against its slower half, and what lower levels change."""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_client.options import PredictOptions
from m2ost_client.predict import predict_slide
from m2ost_client.server.command import ServerOptions
from m2ost_client.server.supervisor import TritonServer
from m2ost_client.stream import StreamOptions
from m2ost_contract import EXPRESSION, ONNX_FILE, Manifest
from m2ost_loadtests.errors import TargetError
from m2ost_loadtests.machine import describe_machine
from m2ost_loadtests.rounds import interleave, seconds_of, spread, time_in_turn
from m2ost_loadtests.runners import bare_runner, spots_to_score
from m2ost_preprocess.decoder import DecodedSlide
from m2ost_preprocess.slides import SlideRoots
from m2ost_preprocess.tiling.tiles import TilingCounts
from m2ost_serving.engine.onnx import cpu_session

from .layouts import layouts
from .ways import AGAINST, BATCH_ROWS, WINDOW_PX, Way, all_cores, collect, kept_decoder, ours, ways

SAMPLE_SPOTS = 64
"""Spots that others are timed on: neighbours from the middle of the layout, for they too keep some tiles."""

Progress = Callable[[str], None]


def measure(
    release: Path, slide: Path, *, pitch_um: float, drift_spots: int, rounds: int, tell: Progress
) -> dict[str, Any]:
    """All three measurements.

    Parameters
    ----------
    release : Path
    slide : Path
        A tiled slide that carries µm/px; one with a pyramid tells what lower levels change.
    pitch_um : float
        Pitch of the whole path's grid, in µm.
    drift_spots : int
        Most spots that lower levels are judged on.
    rounds : int
    tell : callable
        Told what is being measured.

    Raises
    ------
    TargetError
        If the slide carries no µm/px or has no spots.
    SlideError
        If it cannot be read.
    """
    return {
        "machine": describe_machine(),
        "slide": slide.name,
        "rounds": rounds,
        "layouts": compare_tilers(slide, rounds, tell),
        "whole_path": compare_whole_path(release, slide, pitch_um, rounds),
        "lower_levels": lower_levels(release, slide, drift_spots, rounds),
    }


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
        sample = centers[middle : middle + SAMPLE_SPOTS]
        counts = TilingCounts()
        _exhaust(ours(slide, centers, counts, threads=all_cores()))
        inner = _inner(source.size, sample)
        expected = collect(ours(slide, sample))
        equal = {
            way: all(
                np.array_equal(a[inner], b[inner]) for a, b in zip(collect(run(slide, sample)), expected, strict=True)
            )
            for way, run in ways().items()
        }
        ms = interleave(
            {
                way: partial(_ms_a_spot, run, slide, sample if way in AGAINST else centers)
                for way, run in ways().items()
            },
            rounds,
        )
        tables.append(
            {
                "layout": name,
                "spots": len(centers),
                "baseline_spots": len(sample),
                "ms_a_spot": ms.spreads(),
                "times_as_fast": {way: ms.ratio(way, AGAINST[way]) for way in ms.found if way in AGAINST},
                "equal": equal,
                "counts": asdict(counts),
                "decoded_over_needed": counts.decoded_px / needed_px(source.size, source.tile, centers),
            }
        )
    return tables


def _ms_a_spot(way: Way, slide: Path, centers: Any) -> float:
    return 1000 * seconds_of(lambda: _exhaust(way(slide, centers))).clock / len(centers)


def _exhaust(batches: Iterator[object]) -> None:
    deque(batches, maxlen=0)


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
    options = ServerOptions(release=release, roots=SlideRoots({"bench": slide.parent}))
    with TritonServer(options) as server, tempfile.TemporaryDirectory() as out:
        stream = StreamOptions(batch_rows=BATCH_ROWS)
        predict = PredictOptions(slide=f"bench/{slide.name}", out=Path(out), pitch_um=pitch_um, stream=stream)
        runs: dict[str, Callable[[], object]] = {
            "file to table": lambda: asyncio.run(predict_slide(server.address, predict)),
            "bare inference": bare_runner(release, slide, centers, BATCH_ROWS),
            "bare decoding": lambda: _decode(source, centers),
        }
        for run in runs.values():
            run()
        seconds = time_in_turn(runs, rounds).map(lambda s: s.clock)
    rounds_s = zip(*seconds.found.values(), strict=True)
    return {
        "spots": len(centers),
        "pitch_um": pitch_um,
        "seconds": seconds.spreads(),
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
    session = cpu_session(release / ONNX_FILE)
    names = Manifest.read(release).engine.views.names
    expression, decoded = [], []
    for pyramid in (False, True):
        counts = TilingCounts()
        batches = ours(slide, centers, counts, pyramid=pyramid)
        parts = [session.run([EXPRESSION], dict(zip(names, views, strict=True)))[0] for views in batches]
        expression.append(np.concatenate(parts).astype(np.float64))
        decoded.append(counts.decoded_px)
    native, lower = expression
    runs = {name: partial(ours, pyramid=pyramid) for name, pyramid in (("level 0", False), ("lower levels", True))}
    ms = interleave({name: partial(_ms_a_spot, run, slide, centers) for name, run in runs.items()}, rounds)
    r = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(native.T, lower.T, strict=True)]
    return {
        "spots": len(centers),
        "decoded_px": {"level 0": decoded[0], "lower levels": decoded[1]},
        "r_per_gene": {"min": min(r), "median": float(np.median(r))},
        "times_as_fast": ms.ratio("level 0", "lower levels"),
        "max_difference_sd": float((np.abs(native - lower) / native.std(axis=0)).max()),
    }
