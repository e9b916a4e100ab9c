"""spots/s of the served ensemble, of a bare ONNX Runtime session, and of the authors' way; interleaved in one run.

- **bare**: one ONNX Runtime session, configured as in the release, on views that lie ready in memory.
- **served**: from slide ids and coordinates through gRPC, tiler and engine of an embedded Triton.
- **served cpu**, where another profile is served: the same by the profile ``cpu``, which computes as bare does.
- **authors**: Pillow crops and resizes every view from the decoded slide, PyTorch float32 in eager mode, batch 48.
  Decoding the whole slide, which their data loader does once, is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from m2ost_client.server.command import DEFAULT_PROFILE, ServerOptions
from m2ost_client.server.supervisor import TritonServer
from m2ost_client.stream import StreamOptions
from m2ost_contract import ViewGeometry
from m2ost_loadtests.machine import cpu_instructions, versions
from m2ost_loadtests.rounds import spread_text
from m2ost_loadtests.runners import bare_runner, score_in_turn, served_runner, spots_to_score
from m2ost_preprocess.decoder import decoded_slide
from m2ost_preprocess.slides import SlideRoots
from PIL import Image

from ..process_memory import processor_s

AUTHORS_BATCH = 48
CPU = "served cpu"
RUNTIMES = ("onnxruntime", "openvino", "torch")


def authors_runner(checkpoint: Path, slide: Path, centers: Any) -> Callable[[], Any]:
    """Crop with Pillow, score with PyTorch in eager mode."""
    import torch
    from m2ost.checkpoint import load

    model, _ = load(checkpoint)
    with decoded_slide(slide) as source:
        image = Image.fromarray(source.read(0, 0, *source.size))
    geometry = model.config.views

    def views_of(center: Any) -> list[Any]:
        return [np.asarray(_authors_view(image, geometry, i, center)) for i in range(geometry.n_views)]

    def run() -> Any:
        parts = []
        with torch.inference_mode():
            for first in range(0, len(centers), AUTHORS_BATCH):
                spots = [views_of(center) for center in centers[first : first + AUTHORS_BATCH]]
                parts.append(model(*(torch.from_numpy(np.stack(view)) for view in zip(*spots, strict=True))).numpy())
        return np.concatenate(parts)

    return run


def _authors_view(image: Image.Image, geometry: ViewGeometry, view: int, center: Any) -> Image.Image:
    left, top, side = geometry.windows((int(center[0]), int(center[1])))[view]
    crop = image.crop((left, top, left + side, top + side))
    size = geometry.size_px
    return crop if side == size else crop.resize((size, size), Image.Resampling.BILINEAR)


def measure(
    release: Path,
    slide: Path,
    *,
    checkpoint: Path,
    pitch_um: float,
    rounds: int,
    stream: StreamOptions,
    profile: str = DEFAULT_PROFILE,
) -> dict[str, Any]:
    """Time the ways on servers of their own, by the clock and by processor time; also checks that they agree.

    Parameters
    ----------
    release, slide : Path
    checkpoint : Path
        What the release was exported from.
    pitch_um : float
        Pitch of the grid of spots in µm.
    rounds : int
    stream : StreamOptions
        Of the client; its batch is also that of bare inference.
    profile : str
        What is served, by an engine on the CPU.

    Raises
    ------
    TargetError
        If the slide carries no µm/px or has no spots.
    """
    slide = slide.resolve()
    centers = spots_to_score(slide, pitch_um)
    profiles = {"served": profile, **({} if profile == DEFAULT_PROFILE else {CPU: DEFAULT_PROFILE})}
    roots = SlideRoots({"bench": slide.parent})
    cold_start_s = 0.0
    runners: dict[str, Callable[[], Any]] = {"bare": bare_runner(release, slide, centers, stream.batch_rows)}
    elsewhere: dict[str, Callable[[], float]] = {}
    with ExitStack() as stack:
        for name, chosen in profiles.items():
            began = time.perf_counter()
            server = stack.enter_context(TritonServer(ServerOptions(release=release, roots=roots, profile=chosen)))
            cold_start_s = cold_start_s or time.perf_counter() - began
            runners[name] = served_runner(server.address, f"bench/{slide.name}", centers, stream)
            elsewhere[name] = partial(processor_s, psutil.Process(server.pid))
        runners["authors"] = authors_runner(checkpoint, slide, centers)
        timed = score_in_turn(runners, len(centers), rounds, processor_s=elsewhere)
    return {
        "slide": slide.name,
        "precision": "fp32",
        "profile": profile,
        "instructions": cpu_instructions(),
        "versions": versions(RUNTIMES),
        "batch_rows": stream.batch_rows,
        "window": stream.window,
        "included": {
            "bare": "inference only",
            **dict.fromkeys(profiles, "reading the slide, views, gRPC, inference"),
            "authors": "views, inference; not decoding the slide",
        },
        **timed,
        "cold_start_s": cold_start_s,
    }


def to_markdown(report: dict[str, Any]) -> str:
    """Rates and ratios as lists."""
    lines = [
        f"{report['spots']} spots of {report['slide']}, {report['rounds']} rounds, {report['machine']['processor']}",
        "",
        *(
            f"- {name}: {rate['median']:.2f} spots/s ({report['included'][name]})"
            for name, rate in report["spots_per_s"].items()
        ),
        *(f"- {name}: {spread_text(ratio, '.3f')}" for name, ratio in report["ratios"].items()),
        *(
            f"- {name}, processor time: {spread_text(ratio, '.3f')}"
            for name, ratio in report.get("ratios_by_processor_time", {}).items()
        ),
        f"- cold start: {report['cold_start_s']:.1f} s",
    ]
    return "\n".join(lines) + "\n"
