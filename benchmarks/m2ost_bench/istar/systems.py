"""What is compared: M2OST and iStar, each with one decoder on the same runtime, and both through one server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2ost_client.requests import tensor
from m2ost_client.stream import SpotStream, StreamOptions
from m2ost_contract import ENV_TILE_CACHE_MIB, EXPRESSION, ONNX_FILE, Manifest
from m2ost_istar.geometry import VARIANTS
from m2ost_istar.onnx import OnnxNetworks
from m2ost_istar.stopwatch import Stopwatch
from m2ost_istar.timing import READING, StageTiming, VariantTiming, time_variant
from m2ost_loadtests.errors import MemoryCapExceeded
from m2ost_loadtests.load.requests import MODEL_ISTAR, istar_tensors
from m2ost_loadtests.rounds import seconds_of
from m2ost_preprocess.decoder import DecodedSlide, Decoder
from m2ost_serving.engine.onnx import cpu_session, cuda_session

M2OST = "m2ost"
VIEWS, NETWORK, SERVED = "views", "network", "served"

PIXELS = frozenset({VIEWS, *READING, "rescale", "rescale whole slide"})
"""Stages that read the slide and end with pixels as a network takes them. M2OST's views are read and cut as one."""


def seconds(timing: VariantTiming, *, reading: bool) -> float:
    """Seconds for the whole slide, with or without what turns the file into pixels for the networks."""
    return sum(stage.scaled_s for stage in timing.stages if reading or stage.stage not in PIXELS)


@dataclass(frozen=True)
class Runtime:
    """What both systems run on, alike: ONNX Runtime on the CPU, or on a GPU under its allocator's limit.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda``.
    memory_limit_bytes : int or None
        Of a session's allocator on a GPU. On the CPU the process is bounded from outside.
    """

    device: str = "cpu"
    memory_limit_bytes: int | None = None

    def open_session(self, onnx: Path) -> Any:
        """A session on the device."""
        if self.device == "cpu":
            return cpu_session(onnx)
        return cuda_session(onnx, memory_limit_bytes=self.memory_limit_bytes)

    @contextmanager
    def within_limit(self) -> Iterator[None]:
        """Turn an allocation that a GPU's limit refused into ``MemoryCapExceeded``."""
        try:
            yield
        except Exception as error:  # onnxruntime raises a kind of its own for each cause
            if self.device == "cuda" and "allocate memory" in str(error):
                raise MemoryCapExceeded(f"the GPU's allocator refused: {error}") from error
            raise


@dataclass(frozen=True)
class M2OSTSystem:
    """M2OST on the spots of a slide: views from the file, then ONNX Runtime, batch by batch.

    Parameters
    ----------
    release : Path
    slide : Path
        Resolved.
    centers : ndarray of int32, shape (n, 2)
        x, y in level-0 pixels.
    batch_rows : int
    flop_per_spot : float
    runtime : Runtime
    """

    release: Path
    slide: Path
    centers: Any
    batch_rows: int
    flop_per_spot: float
    runtime: Runtime

    def open(self) -> Callable[[], VariantTiming]:
        """See :class:`~m2ost_bench.istar.workers.System`."""
        geometry = Manifest.read(self.release).engine.views
        # Every run decodes the slide, as iStar's do: with tiles kept, those after the first would not.
        decoder = Decoder(geometry, threads=0, environment={ENV_TILE_CACHE_MIB: "0"})
        slide = DecodedSlide(decoder, self.slide)
        session = self.runtime.open_session(self.release / ONNX_FILE)

        def run() -> VariantTiming:
            watch = Stopwatch()
            for first in range(0, len(self.centers), self.batch_rows):
                centers = self.centers[first : first + self.batch_rows]
                with watch(VIEWS):
                    views = slide.views(centers)
                with watch(NETWORK), self.runtime.within_limit():
                    session.run([EXPRESSION], dict(zip(geometry.names, views, strict=True)))
            n = len(self.centers)
            flop = n * self.flop_per_spot
            stages = (
                StageTiming(VIEWS, "spots", n, n, watch.seconds[VIEWS], watch.seconds[VIEWS]),
                StageTiming(NETWORK, "spots", n, n, watch.seconds[NETWORK], watch.seconds[NETWORK], flop, flop),
            )
            return VariantTiming(M2OST, self.batch_rows, {"spots": n}, stages)

        return run


@dataclass(frozen=True)
class IStarSystem:
    """iStar on a slide, whole or on a sample of its batches.

    Parameters
    ----------
    istar : Path
        A folder of ``m2ost export-istar``.
    slide : Path
        Resolved.
    mpp : float
        µm per level-0 pixel.
    centers : ndarray of int32, shape (n, 2)
    spot_diameter_um : float
    variant : str
        A key of ``VARIANTS``.
    batch_rows : int
        Patches a mini-batch.
    sample_batches : int or None
        Mini-batches to run; None for all.
    runtime : Runtime
    """

    istar: Path
    slide: Path
    mpp: float
    centers: Any
    spot_diameter_um: float
    variant: str
    batch_rows: int
    sample_batches: int | None
    runtime: Runtime

    def open(self) -> Callable[[], VariantTiming]:
        """See :class:`~m2ost_bench.istar.workers.System`."""
        slide = DecodedSlide(Decoder(threads=0), self.slide)
        networks = OnnxNetworks(self.istar, self.runtime.open_session)

        def run() -> VariantTiming:
            with self.runtime.within_limit():
                return time_variant(
                    slide,
                    mpp=self.mpp,
                    networks=networks,
                    variant=VARIANTS[self.variant],
                    batch_rows=self.batch_rows,
                    sample_batches=self.sample_batches,
                    centers=self.centers,
                    spot_diameter_um=self.spot_diameter_um,
                )

        return run


def served_m2ost(address: str, slide: str, centers: Any) -> VariantTiming:
    """All spots of a slide through ``m2ost_slide``, as the streaming client sends them."""

    async def stream() -> None:
        async with SpotStream(address) as client:
            async for _ in client.predict(slide, centers):
                pass

    return _served(M2OST, len(centers), lambda: asyncio.run(stream()), StreamOptions().batch_rows)


def served_istar(client: Any, slide: str, centers: Any, *, mpp: float, spot_diameter_um: float) -> VariantTiming:
    """All spots of a slide in one request to ``istar_slide``."""
    tensors = istar_tensors(slide, centers, spot_diameter_um=spot_diameter_um, mpp=mpp)
    inputs = [tensor(name, array) for name, array in tensors.items()]
    return _served("istar", len(centers), lambda: client.infer(MODEL_ISTAR, inputs), 0)


def _served(name: str, n: int, run: Callable[[], Any], batch_rows: int) -> VariantTiming:
    spent = seconds_of(run).clock
    return VariantTiming(name, batch_rows, {"spots": n}, (StageTiming(SERVED, "spots", n, n, spent, spent),))
