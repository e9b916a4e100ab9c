"""spots/s of the served ensemble, of a bare ONNX Runtime session, and of the authors' way; interleaved in one run.

- **bare**: one ONNX Runtime session, configured as in the release, on views that lie ready in memory.
- **served**: from slide ids and coordinates through gRPC, tiler and engine of an embedded Triton.
- **authors**: Pillow crops and resizes every view from the decoded slide, PyTorch float32 in eager mode, batch 48.
  Decoding the whole slide, which their data loader does once, is not counted.

Usage: python -m m2ost_loadtests.served_vs_bare --release DIR --checkpoint DIR --slide FILE --out DIR
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import m2ost_contract as contract
import numpy as np
from m2ost_client.command import ServerOptions
from m2ost_client.stream import SpotStream, StreamOptions
from m2ost_client.supervisor import TritonServer
from m2ost_contract import EXPRESSION, Manifest, ViewGeometry
from m2ost_preprocess.decoder import decoded_slide
from m2ost_preprocess.errors import PreprocessError
from m2ost_preprocess.slides import SlideRoots
from m2ost_preprocess.spots import grid
from m2ost_preprocess.tissue import MASK_PX, tissue_mask
from m2ost_preprocess.views import spatial_order
from m2ost_serving.engine.onnx import cpu_session
from PIL import Image

from .errors import LoadTestError, TargetError
from .machine import describe_machine, spread, write_report

AUTHORS_BATCH = 48


def bare_runner(release: Path, slide: Path, centers: Any, batch_rows: int) -> Callable[[], Any]:
    """Score ready views with ONNX Runtime; returns the expression in the order of ``centers``."""
    geometry = Manifest.read(release).engine.views
    session = cpu_session(release / contract.MODEL_ENGINE / "1" / "model.onnx")
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
    with decoded_slide(slide) as source:
        mpp = source.mpp if mpp is None else mpp
        if mpp is None:
            raise TargetError(f"{slide}: carries no µm/px; give it with --mpp, or measure on a slide that does")
        spots = grid(source.size, tissue_mask(source.thumbnail(MASK_PX)), pitch_um / mpp)
    centers = contract.as_centers(spots.centers)
    if not len(centers):
        raise TargetError(
            f"{slide}: no spots at a pitch of {pitch_um:g} µm; choose another slide or a smaller --pitch-um"
        )
    return centers[spatial_order(centers)]


def interleave(runners: Mapping[str, Callable[[], Any]], spots: int, rounds: int) -> dict[str, Any]:
    """Time every way to score the same spots, ``rounds`` times in turn, after one untimed run of each.

    Parameters
    ----------
    runners : mapping of str to callable
        Name → scores all spots and returns their expression; ``bare`` and ``served`` are among them.
    spots : int
        Spots that each scores.
    rounds : int

    Returns
    -------
    dict
        ``spots_per_s`` by name, ``ratios`` of served to each other (of the same round), and ``max_abs_diff_to_bare``.
    """
    results = {name: run() for name, run in runners.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    rates = {name: [spots / s for s in values] for name, values in seconds.items()}
    return {
        "spots": spots,
        "rounds": rounds,
        "spots_per_s": {name: spread(values) for name, values in rates.items()},
        "ratios": {
            f"served/{other}": spread([a / b for a, b in zip(rates["served"], rates[other], strict=True)])
            for other in rates
            if other != "served"
        },
        "max_abs_diff_to_bare": {n: float(np.abs(r - results["bare"]).max()) for n, r in results.items()},
    }


def measure(release: Path, checkpoint: Path, slide: Path, pitch_um: float, rounds: int, stream: StreamOptions) -> Any:
    """Time the three ways on a server of their own; also checks that they agree."""
    slide = slide.resolve()
    centers = spots_to_score(slide, pitch_um)
    began = time.perf_counter()
    with TritonServer(ServerOptions(release=release, roots=SlideRoots({"bench": slide.parent}))) as server:
        cold_start_s = time.perf_counter() - began
        runners = {
            "bare": bare_runner(release, slide, centers, stream.batch_rows),
            "served": served_runner(server.address, f"bench/{slide.name}", centers, stream),
            "authors": authors_runner(checkpoint, slide, centers),
        }
        timed = interleave(runners, len(centers), rounds)
    return {
        "machine": describe_machine(),
        "slide": slide.name,
        "precision": "fp32",
        "batch_rows": stream.batch_rows,
        "window": stream.window,
        "included": {
            "bare": "inference only",
            "served": "reading the slide, views, gRPC, inference",
            "authors": "views, inference; not decoding the slide",
        },
        **timed,
        "cold_start_s": cold_start_s,
    }


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="what the release was exported from")
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pitch-um", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-rows", type=int, default=StreamOptions().batch_rows)
    parser.add_argument("--window", type=int, default=StreamOptions().window)
    arguments = parser.parse_args()
    stream = StreamOptions(batch_rows=arguments.batch_rows, window=arguments.window)
    try:
        report = measure(
            arguments.release, arguments.checkpoint, arguments.slide, arguments.pitch_um, arguments.rounds, stream
        )
    except (LoadTestError, PreprocessError) as error:
        raise SystemExit(f"error: {error}") from error
    lines = [
        f"{report['spots']} spots of {report['slide']}, {report['rounds']} rounds, {report['machine']['processor']}"
    ]
    for name, rate in report["spots_per_s"].items():
        lines.append(f"  {name:8} {rate['median']:6.2f} spots/s  ({report['included'][name]})")
    for name, ratio in report["ratios"].items():
        lines.append(f"  {name:15} {ratio['median']:.3f}  [{ratio['min']:.3f} … {ratio['max']:.3f}]")
    lines.append(f"  cold start {report['cold_start_s']:.1f} s")
    lines.append(f"  {write_report(report, arguments.out, 'served_vs_bare')}")
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
