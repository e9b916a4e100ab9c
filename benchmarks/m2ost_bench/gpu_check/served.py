"""From a slide's file to expression: in this process, and through a real tritonserver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from m2ost_contract import MODEL_ENGINE, Release, install_command
from m2ost_loadtests.rounds import Rounds
from m2ost_loadtests.triton_statistics import read_settled_metrics, server_figures
from m2ost_preprocess.tiling.tiles import TilingCounts
from m2ost_serving.tiler import ArrayTiler, PillowTiler, Tiler

from .device import Device, Pace, time_on, times_as_fast
from .inputs import FreshSlide
from .networks import REFERENCE, TORCH_FP16, Networks, compare
from .parts import Outcome, Skip, need
from .tiling import cut


@dataclass(frozen=True)
class Work:
    """What is scored from the file on.

    Parameters
    ----------
    slide : FreshSlide
        The slide: every run decodes it anew.
    centers : ndarray of int32, shape (n, 2)
        Spots whose expression is known.
    grids : mapping of str to ndarray of int32, each shape (m, 2)
        Spots of the runs that are timed.
    """

    slide: FreshSlide
    centers: Any
    grids: Mapping[str, Any]

    def spots_per_s(self, seconds: Rounds[float]) -> dict[str, float]:
        """Of runs whose names begin with their grid's: the median over the rounds."""
        return {name: len(self.grids[name.split()[0]]) / median(values) for name, values in seconds.found.items()}


def measure_end_to_end(
    outcome: Outcome, networks: Networks, device: Device, work: Work, batch_rows: int, pace: Pace
) -> None:
    """Slide file → views → expression, by the network as PyTorch runs it and by its fastest form that is right.

    Decoding, cutting and scoring follow each other here, batch by batch, and do not overlap: this is the sum of the
    steps, not what a server reaches.
    """
    forms = [name for name in dict.fromkeys((REFERENCE, networks.fastest)) if name in networks.scorers]
    if not forms:
        raise Skip("no form of the network is right")
    geometry = networks.model.config.views
    tilers: dict[str, Tiler] = {"array": ArrayTiler(geometry, device.arrays()), "pillow": PillowTiler(geometry)}
    decoded_px = {}

    def score(tiler: Tiler, form: str, centers: Any, counts: TilingCounts) -> Any:
        slide = work.slide.path()
        parts = [
            networks.scorers[form](cut(tiler, slide, centers[first : first + batch_rows], counts=counts))
            for first in range(0, len(centers), batch_rows)
        ]
        return np.concatenate(parts)

    try:
        for where, tiler in tilers.items():
            for form in forms:
                if form != TORCH_FP16:
                    found = score(tiler, form, work.centers, TilingCounts())
                    compare(outcome, found, networks.expected, f"{where} tiler, {form}")
        for grid, centers in work.grids.items():
            counts = TilingCounts()
            score(tilers["array"], forms[0], centers, counts)
            decoded_px[grid] = counts.decoded_px
        runs: dict[str, Callable[[], Any]] = {
            f"{grid} spots, {where} tiler, {form}": partial(score, tiler, form, centers, TilingCounts())
            for grid, centers in work.grids.items()
            for where, tiler in tilers.items()
            for form in forms
        }
        seconds = time_on(device, runs, replace(pace, at_least_s=0.0))
    finally:
        for tiler in tilers.values():
            tiler.close()
    outcome.figures.update(decoded_px=decoded_px, spots_per_s=work.spots_per_s(seconds))
    if REFERENCE in forms:
        for grid in work.grids:
            slowest = f"{grid} spots, pillow tiler, {REFERENCE}"
            own = Rounds({name: values for name, values in seconds.found.items() if name.startswith(f"{grid} ")})
            outcome.figures[f"times_as_fast_as {slowest}"] = times_as_fast(own, slowest)


def measure_served(outcome: Outcome, networks: Networks, release: Path, profile: str, work: Work, pace: Pace) -> None:
    """The ensemble of an embedded tritonserver, from the slide's name: true, and spots/s over all requests.

    ``rows_per_execution`` is the batch size that the engine saw: what to build a plan for, by ``--opt-rows``.
    """
    need("tritonclient.grpc", install=install_command("client"))
    from m2ost_client import ServerOptions, SpotStream, TritonServer
    from m2ost_client.errors import ServerStartError
    from m2ost_client.server.doctor import check_start
    from m2ost_client.server.installation import find_installation
    from m2ost_preprocess.slides import SlideRoots

    options = ServerOptions(release=release, roots=SlideRoots({"check": work.slide.folder}), profile=profile)
    try:
        check_start(options, [Release.open(release)], find_installation())
    except ServerStartError as error:
        raise Skip(str(error)) from error

    async def stream(centers: Any) -> Any:
        found = np.full((len(centers), networks.expected.shape[1]), np.nan, np.float32)
        async with SpotStream(server.address) as client:
            async for batch in client.predict(f"check/{work.slide.path().name}", centers):
                found[batch.rows] = batch.expression
        return found

    def score(centers: Any) -> Any:
        return asyncio.run(stream(centers))

    with TritonServer(options) as server:
        before = read_settled_metrics(server.metrics_url)
        compare(outcome, score(work.centers), networks.expected)
        runs: dict[str, Callable[[], Any]] = {
            f"{grid} spots": partial(score, centers) for grid, centers in work.grids.items()
        }
        seconds = time_on(Device("cpu"), runs, replace(pace, at_least_s=0.0))
        engine = server_figures(before, read_settled_metrics(server.metrics_url))[MODEL_ENGINE]
    outcome.figures.update(
        profile=profile, spots_per_s=work.spots_per_s(seconds), rows_per_execution=engine["rows_per_execution"]
    )
