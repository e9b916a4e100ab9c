"""What a dense map costs with patches shared, against the network run afresh at every position, on a region of a slide.

- **fresh**: the release's graph in ONNX Runtime; every window is embedded by itself.
- **shared**: its graph for dense maps; the distinct patches of a batch are embedded once. Finding them is included.

Operations are counted exactly, for the batches in which ``m2ost predict --dense`` asks for the region; seconds are
those of a sample of these batches, both ways in turn, by the clock and as processor time of all threads, which other
programs on the machine hardly lengthen. Both get ready views: cutting them is the tiler's and the same.
The release is one of ``m2ost export --dense``. Without a region it is the square of 2,048 pixels with most tissue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from m2ost.config import M2OSTConfig
from m2ost.network import M2OST
from m2ost.systems.registry import from_dict
from m2ost_contract import ONNXRUNTIME_CPU, ONNXRUNTIME_CPU_DENSE, Release
from m2ost_export.dense import patch_geometry
from m2ost_export.fused import FusedM2OST
from m2ost_loadtests.errors import LoadTestError
from m2ost_loadtests.machine import describe_machine
from m2ost_loadtests.rounds import Rounds, spread_text, time_in_turn
from m2ost_preprocess.decoder import DecodedSlide, decoded_slide
from m2ost_preprocess.slides.dense_grid import DenseGrid, parse_pitch
from m2ost_preprocess.slides.rectangle import Rectangle
from m2ost_preprocess.slides.tissue import MASK_PX, Mask, TissueShares, tissue_mask
from m2ost_serving.engine import load_engine
from m2ost_serving.engine.base import Engine
from m2ost_serving.engine.patches import PatchGeometry, share
from torch.utils.flop_counter import FlopCounterMode

REGION_PX = 2048

Views = dict[str, Any]


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a network in its served form, 2 × multiply-accumulate.

    Parameters
    ----------
    position : float
        One position afresh.
    patch : tuple of float
        Embedding one patch of every patching.
    projection : float
        The first block's queries, keys and values of one position: linear in the embeddings, so shareable in principle,
        but not shared.
    """

    position: float
    patch: tuple[float, ...]
    projection: float

    @classmethod
    def of(cls, config: M2OSTConfig) -> Operations:
        """Count them, without allocating the network."""
        geometry = patch_geometry(config)
        with torch.device("meta"):
            network = FusedM2OST(M2OST(config)).eval()
            views = [torch.empty(1, *config.views.shape, dtype=torch.uint8) for _ in range(config.n_levels)]
            patches = [torch.empty(1, geometry.patch_bytes(j)) for _, j in geometry.patchings]
        position = _count(partial(network, *views))
        patch = [
            _count(partial(network.embeddings[j], x)) for (_, j), x in zip(geometry.patchings, patches, strict=True)
        ]
        tokens = sum(geometry.tokens(level) for level in range(config.n_levels))
        return cls(position, tuple(patch), 2.0 * tokens * config.dim * 3 * config.heads * config.head_dim)

    def embedding(self, patches: Any) -> float:
        """Of embedding so many patches of every patching."""
        return float(np.dot(self.patch, patches))


def _count(run: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return float(counter.get_total_flops())


def busiest_region(size: tuple[int, int], mask: Mask) -> Rectangle:
    """The square of ``REGION_PX`` with most tissue, its corner at a multiple of an eighth of that."""
    step = REGION_PX // 8
    shares = TissueShares(mask)
    corners = [
        (
            float(
                shares.between([x / size[0], (x + REGION_PX) / size[0]], [y / size[1], (y + REGION_PX) / size[1]])[0, 0]
            ),
            x,
            y,
        )
        for y in range(0, max(1, size[1] - REGION_PX + 1), step)
        for x in range(0, max(1, size[0] - REGION_PX + 1), step)
    ]
    _, left, top = max(corners)
    return Rectangle(left, top, REGION_PX, REGION_PX).within(size)


def batches_of(grid: DenseGrid, mask: Mask, rows: int) -> list[Any]:
    """The centres of every request that a map takes, as the client sends them."""
    return [
        block.centers[first : first + rows]
        for block in grid.blocks(mask)
        for first in range(0, len(block.centers), rows)
    ]


def views_of(slide: DecodedSlide, centers: Any, release: Release) -> Views:
    """Ready views of a batch, by name."""
    return dict(zip(release.engine.views.names, slide.views(centers), strict=True))


def evenly(items: list[Any], most: int) -> list[Any]:
    """At most ``most`` of them, evenly spread; all for 0."""
    if not 0 < most < len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def count_patches(batches: Iterator[Views], geometry: PatchGeometry) -> tuple[int, Any, Any]:
    """Positions, their patches and the distinct ones in their batches, of every patching."""
    positions, distinct = 0, np.zeros(len(geometry.patchings), np.int64)
    for views in batches:
        positions += len(next(iter(views.values())))
        distinct += [len(patches) for patches in share(list(views.values()), geometry).patches]
    return positions, np.full_like(distinct, positions * geometry.tokens_per_patching), distinct


def time_engines(engines: dict[str, Engine], batches: list[Views], rounds: int) -> dict[str, Any]:
    """Run the same batches both ways, in turn, after one untimed run of each."""
    expression = {name: [engine.run(views) for views in batches] for name, engine in engines.items()}
    timed = [time_in_turn({name: partial(e.run, views) for name, e in engines.items()}, rounds) for views in batches]
    seconds = Rounds({name: [s for batch in timed for s in batch.found[name]] for name in engines})
    clock, processor = seconds.map(lambda s: s.clock), seconds.map(lambda s: s.processor)
    positions = sum(len(part) for part in expression["fresh"])
    pairs = zip(expression["fresh"], expression["shared"], strict=True)
    return {
        "order": list(engines),
        "rounds": rounds,
        "positions": positions,
        "max_abs_diff": max(float(np.abs(a - b).max()) for a, b in pairs),
        "shared_over_fresh_by_the_clock": clock.ratio("shared", "fresh"),
        "shared_over_fresh_by_processor_time": processor.ratio("shared", "fresh"),
        "positions_per_s": {name: rounds * positions / sum(values) for name, values in clock.found.items()},
    }


@dataclass(frozen=True, kw_only=True)
class PatchSharingOptions:
    """What to measure.

    Parameters
    ----------
    release : Path
        Of ``m2ost export --dense``.
    slide : Path
    region : str, optional
        ``X,Y,W,H`` in level-0 pixels; by default the square of ``REGION_PX`` with most tissue.
    pitch : str
        Of the map, as ``m2ost predict --dense`` takes it.
    batch_rows : int
        Positions a batch.
    count_batches : int
        Batches to count operations over, evenly spread; 0 takes all.
    time_batches : int
        Batches to time, likewise.
    rounds : int
    """

    release: Path
    slide: Path
    region: str | None = None
    pitch: str = "16px"
    batch_rows: int = 32
    count_batches: int = 64
    time_batches: int = 3
    rounds: int = 3


def measure(options: PatchSharingOptions) -> dict[str, Any]:
    """Count and time.

    Raises
    ------
    LoadTestError
        If the region holds no tissue.
    EngineError
        If the release has no graph for dense maps.
    """
    release = Release.open(options.release)
    with decoded_slide(options.slide, geometry=release.engine.views) as slide:
        return _measure(options, release, slide)


def _measure(options: PatchSharingOptions, release: Release, slide: DecodedSlide) -> dict[str, Any]:
    config = from_dict(release.manifest.architecture)
    if not isinstance(config, M2OSTConfig):
        raise LoadTestError(f"{release.folder}: patches are shared by an M2OST only, and this is another system")
    choices = {"fresh": ONNXRUNTIME_CPU, "shared": ONNXRUNTIME_CPU_DENSE}
    engines = {name: load_engine(release, choice) for name, choice in choices.items()}
    mask = tissue_mask(slide.thumbnail(MASK_PX))
    region = Rectangle.parse(options.region) if options.region else busiest_region(slide.size, mask)
    grid = DenseGrid.over(slide.size, parse_pitch(options.pitch), region)
    requests = batches_of(grid, mask, options.batch_rows)
    if not requests:
        raise LoadTestError(f"region {region} of {options.slide} holds no tissue; choose another --region")
    counted = evenly(requests, options.count_batches)
    geometry, operations = patch_geometry(config), Operations.of(config)
    positions, patches, distinct = count_patches((views_of(slide, c, release) for c in counted), geometry)
    fresh, embedding = positions * operations.position, operations.embedding(patches)
    left = operations.embedding(distinct)
    timed = [views_of(slide, centers, release) for centers in evenly(requests, options.time_batches)]
    return {
        "machine": describe_machine(),
        "slide": options.slide.name,
        "region": str(region),
        "pitch_px": grid.pitch_px,
        "positions": sum(map(len, requests)),
        "batch_rows": options.batch_rows,
        "precision": release.engine.precision,
        "release_sha256": release.engine.release_sha256,
        "counted": {
            "positions": positions,
            "gflop_per_position": operations.position / 1e9,
            "embedding_share": embedding / fresh,
            "first_projection_share": operations.projection / operations.position,
            "patches": {name: int(n) for name, n in zip(geometry.patch_names, patches, strict=True)},
            "distinct": {name: int(n) for name, n in zip(geometry.patch_names, distinct, strict=True)},
            "embedding_left": left / embedding,
            "shared_over_fresh": (fresh - embedding + left) / fresh,
            "least_possible": (fresh - embedding) / fresh,
        },
        "timed": time_engines(engines, timed, options.rounds),
    }


def to_markdown(report: dict[str, Any]) -> str:
    """The report in words."""
    counted, timed = report["counted"], report["timed"]
    clock, processor = (
        spread_text(timed[f"shared_over_fresh_{by}"], ".3f") for by in ("by_the_clock", "by_processor_time")
    )
    lines = [
        f"{report['slide']}, region {report['region']}: {report['positions']} positions {report['pitch_px']} px apart, "
        f"batches of {report['batch_rows']}, {report['precision']}, {report['machine']['processor']}",
        "",
        f"- operations, counted over {counted['positions']} positions at {counted['gflop_per_position']:.3f} GFLOP: "
        f"shared ÷ fresh {counted['shared_over_fresh']:.4f}; {counted['least_possible']:.4f} if embeddings were free",
        f"- patch embeddings are {counted['embedding_share']:.2%} of the network; {counted['embedding_left']:.2%} of "
        f"them are left; not shared: the first block's projections, {counted['first_projection_share']:.2%}",
        f"- seconds, {timed['positions']} positions, {timed['rounds']} rounds in turn: shared ÷ fresh {clock} by the "
        f"clock, {processor} by processor time",
        f"- the two differ by at most {timed['max_abs_diff']:.1e}",
    ]
    return "\n".join(lines) + "\n"
