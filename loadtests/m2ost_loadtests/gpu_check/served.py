"""From a slide's file to expression: in this process, and through a real tritonserver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from m2ost_preprocess.tiler import ArrayTiler, PillowTiler, Tiler

from .device import Device, Pace, interleave, ratios
from .networks import BASELINE_FP16, REFERENCE, Networks, compare
from .parts import Outcome, Skip, need
from .tiling import cut


def measure_end_to_end(
    outcome: Outcome, networks: Networks, device: Device, slide: Path, centers: Any, batch_rows: int, pace: Pace
) -> None:
    """Slide file → views → expression, by the network as PyTorch runs it and by its fastest form that is right.

    Decoding, cutting and scoring follow each other here, batch by batch, and do not overlap: this is the sum of the
    steps, not what a server reaches.
    """
    forms = [name for name in dict.fromkeys((REFERENCE, networks.fastest)) if name in networks.scorers]
    if not forms:
        raise Skip("no form of the network is right")
    torch = need("torch", install="pip install torch")
    geometry = networks.model.config.views
    array, pillow = ArrayTiler(geometry, device.arrays()), PillowTiler(geometry)

    def score(tiler: Tiler, name: str) -> Any:
        parts = []
        for first in range(0, len(centers), batch_rows):
            views = cut(tiler, slide, centers[first : first + batch_rows])
            tensors = [
                torch.from_numpy(v).to(device.torch) if isinstance(v, np.ndarray) else torch.from_dlpack(v)
                for v in views
            ]
            parts.append(networks.scorers[name](tensors).float().cpu().numpy())
        return np.concatenate(parts)

    try:
        with torch.inference_mode():
            runs: dict[str, Callable[[], Any]] = {
                f"{where} tiler, {name}": partial(score, tiler, name)
                for where, tiler in (("array", array), ("pillow", pillow))
                for name in forms
            }
            for name, run in runs.items():
                if not name.endswith(BASELINE_FP16):
                    compare(outcome, run(), networks.expected, name)
            seconds = interleave(device, runs, replace(pace, at_least_s=0.0))
    finally:
        array.close()
        pillow.close()
    outcome.figures.update(spots_per_s={name: len(centers) / median(values) for name, values in seconds.items()})
    slowest = f"pillow tiler, {REFERENCE}"
    if slowest in seconds:
        outcome.figures[f"times_as_fast_as {slowest}"] = ratios(seconds, slowest)


def measure_served(
    outcome: Outcome, networks: Networks, release: Path, profile: str, slide: Path, centers: Any, pace: Pace
) -> None:
    """The ensemble of an embedded tritonserver, from the slide's name: true, and spots/s over all requests."""
    need("tritonclient.grpc", install="pip install 'm2ost-triton[client]'")
    from m2ost_client import ServerOptions, SpotStream, TritonServer
    from m2ost_client.errors import ServerStartError
    from m2ost_client.installation import find_installation
    from m2ost_preprocess.slides import SlideRoots

    try:
        find_installation()
    except ServerStartError as error:
        raise Skip(str(error)) from error
    found = np.full(networks.expected.shape, np.nan, np.float32)

    async def stream(address: str) -> None:
        async with SpotStream(address) as client:
            async for batch in client.predict(f"check/{slide.name}", centers):
                found[batch.rows] = batch.expression

    options = ServerOptions(release=release, roots=SlideRoots({"check": slide.parent}), profile=profile)
    with TritonServer(options) as server:
        run = {profile: lambda: asyncio.run(stream(server.address))}
        seconds = interleave(Device("cpu"), run, pace)[profile]
    compare(outcome, found, networks.expected)
    outcome.figures.update(profile=profile, spots_per_s=len(centers) / median(seconds))
