"""What a spot costs on a very large slide, from a thousand spots to a hundred thousand.

Use a depth-1, narrow release: what is watched is the serving path, not the arithmetic.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from m2ost_client.server.command import ServerOptions
from m2ost_client.server.supervisor import TritonServer
from m2ost_client.stream import SpotStream, StreamOptions
from m2ost_contract import MODEL_ENGINE
from m2ost_loadtests.errors import TargetError
from m2ost_loadtests.machine import describe_machine
from m2ost_loadtests.triton_statistics import METRICS_TIMEOUT_S, read_settled_metrics, server_figures
from m2ost_preprocess.network import read_url
from m2ost_preprocess.slides import SlideRoots

from ..process_memory import memory_mib, processor_s
from ..tiler.measure import needed_px
from .mosaic import TILE_PX, write_mosaic

DECODED_METRIC = "m2ost_tiler_decoded_px_total"
WARM_UP_SPOTS = 64
"""At the slide's corner, before the clock starts."""

FLAT = 0.05
"""Share by which what is counted for a spot may differ between the numbers of spots."""


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """What is measured.

    Parameters
    ----------
    side_px : int
        Width and height of the slide that is made.
    spots : tuple of int
        Numbers of spots, each scored in turn, about so many: a square of spots in the middle of the slide.
    rounds : int
        How often each number is scored, in turn.
    stream : StreamOptions
    """

    side_px: int = 50_000
    spots: tuple[int, ...] = (1_000, 10_000, 100_000)
    rounds: int = 1
    stream: StreamOptions = field(default_factory=StreamOptions)


def squares(options: ScaleOptions) -> dict[int, np.ndarray[Any, np.dtype[np.int64]]]:
    """Spots in the middle of the slide by their number, all at the pitch at which the largest square fills it."""
    sides = [round(math.sqrt(n)) for n in sorted(options.spots)]
    pitch = options.side_px / sides[-1]
    found = {}
    for side in sides:
        steps = (np.arange(side) - (side - 1) / 2) * pitch + options.side_px / 2
        found[side * side] = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2).astype(np.int64)
    return found


def measure(release: Path, slide: Path, folder: Path, options: ScaleOptions, say: Any) -> dict[str, Any]:
    """Make the large slide, and score squares of spots on it, from the smallest to the largest and again.

    Parameters
    ----------
    release, slide : Path
    folder : Path
        Receives the slide that is made, for as long as it is measured.
    options : ScaleOptions
    say : callable
        Told of each part.

    Returns
    -------
    dict
        ``runs``: of each number of spots and round the seconds, the processor seconds of the server, and what was
        counted: rows and runs of the engine, pixels decoded, and those of the tiles that the spots touch, each once,
        ``needed_px``; memory afterwards. ``spread``: of each figure a
        spot, by how much the highest of the numbers of spots lies above the lowest.

    Raises
    ------
    TargetError
        If the slide has no tissue to make one of, or a spot was not scored.
    """
    mosaic = folder.resolve() / "mosaic.tif"
    say(f"a slide of {options.side_px} px squared")
    tiles = write_mosaic(slide, mosaic, options.side_px)
    try:
        runs, size = [], mosaic.stat().st_size
        served = ServerOptions(release=release, roots=SlideRoots({"scale": mosaic.parent}))
        for turn in range(options.rounds):
            for n, centers in squares(options).items():
                needed = needed_px((options.side_px, options.side_px), (TILE_PX, TILE_PX), centers)
                with TritonServer(served) as server:  # a new one: no tile is decoded yet
                    run = asyncio.run(_score(server, f"scale/{mosaic.name}", centers, options.stream))
                run["decoded_over_needed"] = run["decoded_px"] / needed
                runs.append({"round": turn, "spots": n, "needed_px": needed, **run, "restarts": server.restarts})
                say(f"{n} spots in {run['seconds']:.1f} s")
    finally:
        mosaic.unlink(missing_ok=True)
    return {
        "machine": describe_machine(),
        "slide": {"made_of": slide.name, "tiles": tiles, "side_px": options.side_px, "bytes": size},
        "runs": runs,
        "spread": {name: _spread(runs, name) for name in ("decoded_over_needed", "rows_a_spot", "seconds_a_spot")},
    }


async def _score(server: TritonServer, slide: str, centers: Any, options: StreamOptions) -> dict[str, Any]:
    assert server.pid is not None
    root = psutil.Process(server.pid)
    async with SpotStream(server.address, options) as stream:
        async with aclosing(stream.predict(slide, np.zeros((WARM_UP_SPOTS, 2)))) as batches:
            async for _ in batches:
                pass
        before, decoded = read_settled_metrics(server.metrics_url), _decoded_px(server.metrics_url)
        processor, began, done = processor_s(root), time.perf_counter(), 0
        async with aclosing(stream.predict(slide, centers)) as batches:
            async for batch in batches:
                if batch.status.any():
                    raise TargetError(f"{slide}: {int((batch.status != 0).sum())} spots were not scored")
                done += len(batch.rows)
        seconds, processor = time.perf_counter() - began, processor_s(root) - processor
        engine = server_figures(before, read_settled_metrics(server.metrics_url))[MODEL_ENGINE]
        decoded = _decoded_px(server.metrics_url) - decoded
    return {
        "answered": done,
        "seconds": seconds,
        "seconds_a_spot": seconds / done,
        "server_processor_s": processor,
        "rows": engine["rows"],
        "rows_a_spot": engine["rows"] / done,
        "rows_a_run": engine["rows_per_execution"],
        "decoded_px": decoded,
        "memory_mib": memory_mib(server),
    }


def _decoded_px(url: str) -> float:
    """Pixels of the tiles that the tiler has decoded so far."""
    lines = (line.partition("{")[::2] for line in read_url(url, METRICS_TIMEOUT_S).splitlines())
    return sum(float(rest.split()[-1]) for name, rest in lines if name == DECODED_METRIC)


def _spread(runs: Sequence[dict[str, Any]], name: str) -> float:
    """The highest of the medians by number of spots, over the lowest, less 1."""
    medians = [float(np.median([r[name] for r in runs if r["spots"] == n])) for n in {r["spots"] for r in runs}]
    return max(medians) / min(medians) - 1


def to_markdown(report: dict[str, Any]) -> str:
    """The runs as a table, and what is flat."""
    slide, spread = report["slide"], report["spread"]
    lines = [
        f"A slide of {slide['side_px']:,} px squared made of {slide['tiles']} tiles of {slide['made_of']}, "
        f"{slide['bytes'] / 2**20:,.0f} MiB; {report['machine']['processor']}, {report['machine']['cores']} cores",
        "",
        "| spots | seconds | spots/s | decoded ÷ needed | px decoded a spot | rows of the engine a spot | rows a run "
        "| client, server, /dev/shm, MiB |",
        "|---" * 8 + "|",
    ]
    for run in report["runs"]:
        cells = [
            f"{run['spots']:,}",
            f"{run['seconds']:.1f}",
            f"{1 / run['seconds_a_spot']:.1f}",
            f"{run['decoded_over_needed']:.3f}",
            f"{run['decoded_px'] / run['answered']:,.0f}",
            f"{run['rows_a_spot']:.3f}",
            f"{run['rows_a_run']:.1f}",
            ", ".join(f"{run['memory_mib'][name]:.0f}" for name in ("client", "server", "shared")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    counted = all(spread[name] <= FLAT for name in ("decoded_over_needed", "rows_a_spot"))
    lines += [
        "",
        "Highest over lowest number of spots, less 1: "
        f"decoded ÷ needed {spread['decoded_over_needed']:+.3f}, rows a spot {spread['rows_a_spot']:+.3f} "
        f"({'flat' if counted else 'NOT flat'}: at most {FLAT:g}); seconds a spot {spread['seconds_a_spot']:+.3f}",
    ]
    return "\n".join(lines) + "\n"
