"""M2OST beside iStar on one slide, interleaved in one run: each in a process under one memory cap, and served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import tritonclient.grpc as triton
from m2ost_client.server.command import ServerOptions
from m2ost_client.server.supervisor import TritonServer
from m2ost_contract import Manifest, as_centers
from m2ost_istar.geometry import VARIANTS, plan
from m2ost_istar.manifest import IStarManifest
from m2ost_istar.timing import VariantTiming
from m2ost_loadtests.errors import LoadTestError, MemoryCapExceeded
from m2ost_loadtests.rounds import interleave
from m2ost_loadtests.runners import spots_to_score
from m2ost_preprocess.decoder import DecodedSlide, decoded_slide
from m2ost_preprocess.network import channel_options
from m2ost_preprocess.slides import SlideRoots
from m2ost_preprocess.slides.spot_places import check_places
from m2ost_preprocess.slides.spots import read_spots
from m2ost_preprocess.slides.tissue import MASK_PX, tissue_mask
from m2ost_preprocess.tiling.views import spatial_order

from .memory import LargestBatch, largest_batch
from .speedups import summarise
from .systems import M2OST, IStarSystem, M2OSTSystem, Runtime, served_istar, served_m2ost
from .workers import CappedProcess, System

MOST_PATCHES = 256
"""iStar's own mini-batch."""

ROOT = "bench"
PROFILES = {"cpu": "cpu", "cuda": "onnxruntime"}
"""Device → the profile that both systems are served with."""


Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """What is compared.

    Parameters
    ----------
    slide : Path
    release : Path
        M2OST, as exported.
    istar : Path
        iStar, as exported.
    flop_per_spot : float
        Operations of M2OST on one spot.
    memory_cap_bytes : int
        Most resident memory of either system's process, and of the one that decodes for it.
    spots_file : Path, optional
        Where the spots are; by default a grid over the tissue.
    pitch_um, spot_diameter_um : float
        Of the spots, in µm.
    mpp : float, optional
        µm/px of the slide, in place of what the file says.
    variants : tuple of str
        Keys of ``VARIANTS``.
    rounds : int
        Rounds; in each, every system runs once.
    sample_batches : int or None
        Mini-batches of iStar to run a round, scaled to the whole; None runs all.
    served : bool
        Whether both are also measured through one Triton.
    device : str
        ``cpu``, or ``cuda``: the cap is that of the GPU's allocator then.

    Raises
    ------
    LoadTestError
        If a value is out of range.
    """

    slide: Path
    release: Path
    istar: Path
    flop_per_spot: float
    memory_cap_bytes: int
    spots_file: Path | None = None
    pitch_um: float = 100.0
    spot_diameter_um: float = 100.0
    mpp: float | None = None
    variants: tuple[str, ...] = tuple(VARIANTS)
    rounds: int = 3
    sample_batches: int | None = 1
    served: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown or not self.variants:
            raise LoadTestError(f"unknown variant {', '.join(unknown) or 'none'}; there are {', '.join(VARIANTS)}")
        if self.device not in PROFILES:
            raise LoadTestError(f"unknown device {self.device!r}; there are {', '.join(PROFILES)}")
        if self.rounds < 1 or (self.sample_batches is not None and self.sample_batches < 1):
            raise LoadTestError("rounds and sample_batches must be positive")
        if not 0 < self.pitch_um < float("inf") or not 0 < self.spot_diameter_um < float("inf"):
            raise LoadTestError("pitch and spot diameter must be positive numbers of µm")


@dataclass(frozen=True)
class Site:
    """The slide that is compared on.

    Parameters
    ----------
    size_px : (int, int)
        Width and height of level 0.
    mpp : float
        µm per level-0 pixel.
    centers : ndarray of int32, shape (n, 2)
        Spots, in level-0 pixels, neighbours after each other.
    superpixels : dict of str to int
        Variant → places where iStar predicts when it predicts as densely as it can.
    """

    size_px: tuple[int, int]
    mpp: float
    centers: Any
    superpixels: dict[str, int]


def survey(options: ComparisonOptions, slide: DecodedSlide) -> Site:
    """Resolution, spots and superpixels of the slide.

    Raises
    ------
    LoadTestError
        If the slide carries no µm/px and none was given, or there are no spots.
    SpotError
        If the spots' file cannot be used for the slide.
    """
    mpp = options.mpp or slide.mpp
    if mpp is None:
        raise LoadTestError(f"{options.slide}: carries no µm/px; give it with --mpp")
    if options.spots_file is None:
        centers = spots_to_score(options.slide, options.pitch_um, mpp=mpp)
    else:
        spots = read_spots(options.spots_file)
        check_places(
            spots.centers,
            slide.size,
            lambda: slide.thumbnail(MASK_PX),
            source=str(options.spots_file),
            columns=spots.columns,
        )
        centers = as_centers(spots.centers)
        centers = centers[spatial_order(centers)]
    mask = tissue_mask(slide.thumbnail(MASK_PX))
    sizes = IStarManifest.read(options.istar).info.sizes
    superpixels = {name: plan(slide.size, mpp, v, mask, sizes=sizes).superpixels for name, v in VARIANTS.items()}
    return Site(slide.size, mpp, centers, superpixels)


def compare(options: ComparisonOptions, progress: Progress = lambda text: None) -> dict[str, Any]:
    """Measure; returns the report.

    Raises
    ------
    LoadTestError
        If the slide has no spots or no µm/px, or the cap is too small for a batch of one.
    FileNotFoundError, ManifestError
        If release or iStar is none.
    """
    manifest, istar = Manifest.read(options.release), IStarManifest.read(options.istar)
    if options.device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise LoadTestError("ONNX Runtime has no CUDA provider here; pip install onnxruntime-gpu, or --device cpu")
    with decoded_slide(options.slide) as slide:
        site = survey(options, slide)
    makers = _makers(options, site)
    searches: dict[str, LargestBatch] = {}
    for name, (make, most) in makers.items():
        progress(f"{name}: looking for the largest batch under the cap")
        searches[name] = largest_batch(
            make, cap_bytes=options.memory_cap_bytes, most=most, on_host=options.device == "cpu"
        )
    with ExitStack() as stack:
        systems: dict[str, Callable[[], VariantTiming]] = {}
        capped: dict[str, _Capped] = {}
        on_host = options.memory_cap_bytes if options.device == "cpu" else None
        for name, (make, _) in makers.items():
            capped[name] = stack.enter_context(_Capped(make, searches[name].batch, on_host))
            systems[name] = capped[name].run
        if options.served:
            progress("starting one Triton for both")
            systems |= stack.enter_context(_served(options, site))
        progress(f"{options.rounds} rounds of {', '.join(systems)}")
        timed = interleave(systems, options.rounds)
    return {
        **timed.facts(),
        "slide": options.slide.name,
        "size_px": list(site.size_px),
        "mpp": site.mpp,
        "spots": len(site.centers),
        "device": options.device,
        "precision": {"m2ost": manifest.engine.precision, "istar": "fp32"},
        "trained": manifest.engine.trained,
        "istar_pretrained": istar.info.pretrained,
        "memory_cap_mib": options.memory_cap_bytes / 2**20,
        "batches": {name: {"rows": capped[name].rows, "tried": search.peak_bytes} for name, search in searches.items()},
        "peak_bytes": {name: system.peak_bytes for name, system in capped.items()},
        **summarise(timed, site.superpixels, len(site.centers)),
        "superpixels": site.superpixels,
        "timings": {name: [t.to_dict() for t in runs] for name, runs in timed.found.items()},
    }


def _makers(options: ComparisonOptions, site: Site) -> dict[str, tuple[Callable[[int], Any], int]]:
    """Name → (batch → system, largest batch that makes sense)."""
    slide = options.slide.resolve()
    runtime = Runtime(options.device, options.memory_cap_bytes)

    def m2ost(rows: int) -> M2OSTSystem:
        return M2OSTSystem(options.release, slide, site.centers, rows, options.flop_per_spot, runtime)

    def istar(variant: str) -> Callable[[int], IStarSystem]:
        return lambda rows: IStarSystem(
            options.istar,
            slide,
            site.mpp,
            site.centers,
            options.spot_diameter_um,
            variant,
            rows,
            options.sample_batches,
            runtime,
        )

    makers: dict[str, tuple[Callable[[int], Any], int]] = {M2OST: (m2ost, min(MOST_PATCHES, len(site.centers)))}
    return makers | {f"istar {v}": (istar(v), MOST_PATCHES) for v in options.variants}


class _Capped:
    """A system in its process. Where run after run outgrows the cap, which one run did not, it goes on with less."""

    def __init__(self, make: Callable[[int], System], rows: int, cap_bytes: int | None) -> None:
        self._make, self._cap_bytes = make, cap_bytes
        self.rows, self.peak_bytes = rows, 0
        self._process = CappedProcess(make(rows), cap_bytes=cap_bytes)

    def run(self) -> VariantTiming:
        """Run once, within the cap."""
        while True:
            try:
                done = self._process.run()
            except MemoryCapExceeded:
                if self.rows == 1:
                    raise
                self._process.close()
                self.rows = max(1, self.rows * 7 // 8)
                self._process = CappedProcess(self._make(self.rows), cap_bytes=self._cap_bytes)
                continue
            self.peak_bytes = done.peak_bytes
            timing: VariantTiming = done.result
            return timing

    def __enter__(self) -> _Capped:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.close()


@contextmanager
def _served(options: ComparisonOptions, site: Site) -> Iterator[dict[str, Callable[[], VariantTiming]]]:
    slide = options.slide.resolve()
    server_options = ServerOptions(
        release=options.release,
        beside=(options.istar,),
        profile=PROFILES[options.device],
        roots=SlideRoots({ROOT: slide.parent}),
        probe_interval_s=600.0,  # a probe runs the networks, and would be timed with them
    )
    name = f"{ROOT}/{slide.name}"
    with (
        TritonServer(server_options) as server,
        triton.InferenceServerClient(server.address, channel_args=channel_options(server.address)) as client,
    ):
        yield {
            "m2ost, served": lambda: served_m2ost(server.address, name, site.centers),
            "istar tissue, served": lambda: served_istar(
                client, name, site.centers, mpp=site.mpp, spot_diameter_um=options.spot_diameter_um
            ),
        }
