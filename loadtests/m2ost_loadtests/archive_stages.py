"""What the stages of a slide cost, each measured on its own, one after the other, in one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from m2ost_client.archive import Settings, SlideRow
from m2ost_client.archive.output import RESULTS, assemble, write_slide
from m2ost_client.archive.plan import SlidePlan, plan_slide
from m2ost_client.archive.state import Part
from m2ost_client.reports import Exports
from m2ost_preprocess.contract import EXPRESSION, MODEL_ENGINE, EngineInfo, Manifest
from m2ost_preprocess.decoder import Decoder, SlideInfo
from m2ost_preprocess.engine.onnx import cpu_session
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.readers.base import Pixels, SlideReader
from m2ost_preprocess.spots import Spots
from m2ost_preprocess.tiles import CachedReader, TileCache
from m2ost_preprocess.views import cut_views

from .archive_projection import Costs
from .errors import TargetError

T = TypeVar("T")


class TimedReader(SlideReader):
    """A slide, and how long its decoding took so far.

    Attributes
    ----------
    seconds : float
    """

    def __init__(self, reader: SlideReader) -> None:
        self._reader, self.seconds = reader, 0.0
        self.name, self.path, self.size, self.resolution = reader.name, reader.path, reader.size, reader.resolution

    def read_at(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        """See :meth:`SlideReader.read_at`."""
        pixels, seconds = timed(lambda: self._reader.read_at(level, left, top, width, height))
        self.seconds += seconds
        return pixels

    def tile_size(self, level: int) -> tuple[int, int] | None:
        """See :meth:`SlideReader.tile_size`."""
        return self._reader.tile_size(level)

    @property
    def levels(self) -> list[tuple[int, int]]:
        """See :attr:`SlideReader.levels`."""
        return self._reader.levels

    @property
    def resident_bytes(self) -> int:
        """See :attr:`SlideReader.resident_bytes`."""
        return self._reader.resident_bytes

    def close(self) -> None:
        """See :meth:`SlideReader.close`."""
        self._reader.close()


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """What ``run`` returns, and its wall-clock seconds."""
    began = time.perf_counter()
    value = run()
    return value, time.perf_counter() - began


def measure_stages(
    release: Path,
    slides: Sequence[Path],
    out: Path,
    *,
    settings: Settings,
    batch_rows: int,
    written_spots: int,
) -> tuple[Costs, list[dict[str, float]]]:
    """Describe, decode, cut, infer and write every slide, as a run over them does.

    Parameters
    ----------
    release : Path
    slides : sequence of Path
        Files that nothing has opened yet, alike in content.
    out : Path
        An empty folder for results.
    settings : Settings
    batch_rows : int
        Rows an inference.
    written_spots : int
        Spots of the results that are written, without maps: what that costs is not in proportion to them.

    Returns
    -------
    Costs, list of dict
        Medians over the slides but the first, which is a warm-up; and the seconds of each of those, with its ``spots``.

    Raises
    ------
    TargetError
        If a slide has no spots.
    """
    engine = Manifest.read(release).engine
    session = cpu_session(release / MODEL_ENGINE / "1" / "model.onnx")
    (out / RESULTS).mkdir(parents=True)
    measured = []
    with Decoder(engine.views) as decoder:
        for path in slides:
            plan, describe_s = timed(partial(_plan, decoder, path, settings, engine))
            if not len(plan.spots):
                raise TargetError(f"{path.name}: no spots at a pitch of {settings.pitch_um:g} µm; choose a smaller one")
            views, decode_s, cut_s = _cut(path, plan, engine)
            measured.append(
                {
                    "spots": len(plan.spots),
                    "describe_s": describe_s,
                    "decode_s": decode_s,
                    "cut_s": cut_s,
                    "infer_s": timed(partial(_infer, session, views, len(plan.spots), batch_rows))[1],
                    "write_s": _write(with_spots(plan, written_spots), engine, out),
                }
            )
    measured = measured[1:] or measured
    a_slide = {stage: median(m[stage] for m in measured) for stage in ("describe_s", "write_s")}
    a_spot = {stage: median(m[stage] / m["spots"] for m in measured) for stage in ("decode_s", "cut_s", "infer_s")}
    return Costs(**a_slide, **a_spot), measured


def _plan(decoder: Decoder, path: Path, settings: Settings, engine: EngineInfo) -> SlidePlan:
    async def describe(pitch_um: float | None, mpp: float | None) -> SlideInfo:
        return decoder.describe(path, pitch_um=pitch_um, mpp=mpp)

    return asyncio.run(plan_slide(SlideRow(path.stem, str(path)), describe, settings, engine))


def _cut(path: Path, plan: SlidePlan, engine: EngineInfo) -> tuple[dict[str, Pixels], float, float]:
    """Views of all spots; seconds of decoding, and of cutting alone."""
    views = {name: np.empty((len(plan.spots), *engine.views.shape), np.uint8) for name in engine.views.names}
    scales = np.full(len(plan.spots), plan.scale, np.float32)
    reader = TimedReader(open_slide(path))
    tiles = CachedReader(reader, TileCache.from_environment(), path)
    _, seconds = timed(partial(cut_views, tiles, plan.centers, scales, engine.views, list(views.values())))
    tiles.close()
    return views, reader.seconds, seconds - reader.seconds


def _infer(session: Any, views: dict[str, Pixels], n_spots: int, batch_rows: int) -> None:
    for first in range(0, n_spots, batch_rows):
        session.run([EXPRESSION], {name: view[first : first + batch_rows] for name, view in views.items()})


def _write(plan: SlidePlan, engine: EngineInfo, out: Path) -> float:
    """Seconds of writing a result, its values random."""
    n_spots = len(plan.spots)
    values = np.random.default_rng(0).random((n_spots, len(engine.genes)), np.float32)
    result = assemble(plan, engine, Part(0, values, np.zeros(n_spots, np.int32)))
    return timed(lambda: write_slide(plan, result, out, None, exports=Exports(), pixels_sent=False))[1]


def with_spots(plan: SlidePlan, n_spots: int) -> SlidePlan:
    """A plan of as many spots: its own, again and again, each with a name of its own."""
    again = np.arange(n_spots) % len(plan.spots)
    spots = Spots(
        np.asarray(plan.spots.centers)[again],
        tuple(f"{plan.spots.names[i]}-{n}" for n, i in enumerate(again.tolist())),
        plan.spots.pitch_px,
        plan.spots.source,
    )
    return replace(plan, spots=spots, order=np.arange(n_spots, dtype=np.intp))
