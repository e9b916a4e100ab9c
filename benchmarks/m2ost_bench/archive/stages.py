"""What the stages of a slide cost, each measured on its own, one after the other, with one decoder without helpers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from m2ost_client.archive import Settings, SlideRow
from m2ost_client.archive.output import RESULTS, assemble, write_slide
from m2ost_client.archive.plan import SlidePlan, plan_slide
from m2ost_client.archive.state import Part
from m2ost_client.exports import Exports
from m2ost_contract import ENV_DECODER_TRACE, EXPRESSION, ONNX_FILE, EngineInfo, Manifest
from m2ost_loadtests.errors import TargetError
from m2ost_loadtests.rounds import seconds_of, timed
from m2ost_preprocess.decoder import DecodedSlide, Decoder, SlideInfo
from m2ost_preprocess.readers.base import Pixels
from m2ost_preprocess.slides.spots import Spots
from m2ost_serving.engine.onnx import cpu_session

from .projection import Costs


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
        An empty folder for results, and the trace of the decoder.
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
    SlideError, SpotError
        If a slide cannot be read.
    """
    engine = Manifest.read(release).engine
    session = cpu_session(release / ONNX_FILE)
    (out / RESULTS).mkdir(parents=True)
    trace = out / "decoder.jsonl"
    measured = []
    # Without helpers reading and cutting take turns, and neither hides in the other's time.
    with Decoder(engine.views, threads=0, environment={ENV_DECODER_TRACE: str(trace)}) as decoder:
        for path in slides:
            plan, describing = timed(partial(_plan, decoder, path, settings, engine))
            if not len(plan.spots):
                raise TargetError(f"{path.name}: no spots at a pitch of {settings.pitch_um:g} µm; choose a smaller one")
            views, decode_s, cut_s = _cut(decoder, trace, path, plan)
            measured.append(
                {
                    "spots": len(plan.spots),
                    "describe_s": describing.clock,
                    "decode_s": decode_s,
                    "cut_s": cut_s,
                    "infer_s": seconds_of(partial(_infer, session, engine.views.names, views, batch_rows)).clock,
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


def _cut(decoder: Decoder, trace: Path, path: Path, plan: SlidePlan) -> tuple[list[Pixels], float, float]:
    """Views of all spots; seconds of decoding, tiles put together included, and of cutting and handing over."""
    slide, told = DecodedSlide(decoder, path, plan.slide), trace.stat().st_size
    views, seconds = timed(partial(slide.views, plan.centers, plan.scale))
    spans = map(json.loads, trace.read_bytes()[told:].splitlines())
    decode_s = sum(span["end_ns"] - span["start_ns"] for span in spans if span["name"] == "read") / 1e9
    return views, decode_s, seconds.clock - decode_s


def _infer(session: Any, names: Sequence[str], views: list[Pixels], batch_rows: int) -> None:
    for first in range(0, len(views[0]), batch_rows):
        batch = (view[first : first + batch_rows] for view in views)
        session.run([EXPRESSION], dict(zip(names, batch, strict=True)))


def _write(plan: SlidePlan, engine: EngineInfo, out: Path) -> float:
    """Seconds of writing a result, its values random."""
    n_spots = len(plan.spots)
    values = np.random.default_rng(0).random((n_spots, len(engine.genes)), np.float32)
    result = assemble(plan, engine, Part(0, values, np.zeros(n_spots, np.int32)))
    return seconds_of(lambda: write_slide(plan, result, out, None, exports=Exports(), pixels_sent=False)).clock


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
