"""What a dense map costs with patches shared, against the network run afresh at every position, on a region of a slide.

- **fresh**: the release's graph in ONNX Runtime; every window is embedded by itself.
- **shared**: its graph for dense maps; the distinct patches of a batch are embedded once. Finding them is included.

Operations are counted exactly, for the batches in which ``m2ost predict --dense`` asks for the region; seconds are
those of a sample of these batches, both ways in turn, by the clock and as processor time of all threads, which other
programs on the machine hardly lengthen. Both get ready views: cutting them is the tiler's and the same.

Usage: python -m m2ost_bench.engines.patch_sharing --release DIR --slide FILE [--region X,Y,W,H] --out DIR
The release is one of ``m2ost export --dense``. Without a region it is the square of 2,048 pixels with most tissue.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from m2ost.config import M2OSTConfig
from m2ost.network import M2OST
from m2ost_contract import ONNXRUNTIME_CPU, ONNXRUNTIME_CPU_DENSE, Manifest
from m2ost_export.dense import patch_geometry
from m2ost_export.fused import FusedM2OST
from m2ost_loadtests.machine import describe_machine, write_report
from m2ost_loadtests.rounds import Rounds, time_in_turn
from m2ost_preprocess.decoder import DecodedSlide, decoded_slide
from m2ost_preprocess.dense import DenseGrid, parse_pitch
from m2ost_preprocess.engine import load_engine
from m2ost_preprocess.engine.base import Engine
from m2ost_preprocess.engine.patches import PatchGeometry, share
from m2ost_preprocess.errors import PreprocessError
from m2ost_preprocess.rectangle import Rectangle
from m2ost_preprocess.tissue import MASK_PX, Mask, TissueShares, tissue_mask
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


def views_of(slide: DecodedSlide, centers: Any, manifest: Manifest) -> Views:
    """Ready views of a batch, by name."""
    return dict(zip(manifest.engine.views.names, slide.views(centers), strict=True))


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


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Count and time."""
    manifest = Manifest.read(arguments.release)
    with decoded_slide(arguments.slide, geometry=manifest.engine.views) as slide:
        return _measure(arguments, manifest, slide)


def _measure(arguments: argparse.Namespace, manifest: Manifest, slide: DecodedSlide) -> dict[str, Any]:
    config = M2OSTConfig.from_dict(manifest.architecture)
    choices = {"fresh": ONNXRUNTIME_CPU, "shared": ONNXRUNTIME_CPU_DENSE}
    engines = {name: load_engine(arguments.release, manifest.engine, choice) for name, choice in choices.items()}
    mask = tissue_mask(slide.thumbnail(MASK_PX))
    region = Rectangle.parse(arguments.region) if arguments.region else busiest_region(slide.size, mask)
    grid = DenseGrid.over(slide.size, parse_pitch(arguments.dense), region)
    requests = batches_of(grid, mask, arguments.batch_rows)
    if not requests:
        raise SystemExit(f"error: region {region} of {arguments.slide} holds no tissue; choose another --region")
    counted = evenly(requests, arguments.count_batches)
    geometry, operations = patch_geometry(config), Operations.of(config)
    positions, patches, distinct = count_patches((views_of(slide, c, manifest) for c in counted), geometry)
    fresh, embedding = positions * operations.position, operations.embedding(patches)
    left = operations.embedding(distinct)
    timed = [views_of(slide, centers, manifest) for centers in evenly(requests, arguments.time_batches)]
    return {
        "machine": describe_machine(),
        "slide": arguments.slide.name,
        "region": str(region),
        "pitch_px": grid.pitch_px,
        "positions": sum(map(len, requests)),
        "batch_rows": arguments.batch_rows,
        "precision": manifest.engine.precision,
        "release_sha256": manifest.engine.release_sha256,
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
        "timed": time_engines(engines, timed, arguments.rounds),
    }


def to_text(report: dict[str, Any]) -> str:
    """The report in words."""
    counted, timed = report["counted"], report["timed"]
    least = counted["least_possible"]
    lines = [
        f"{report['slide']}, region {report['region']}: {report['positions']} positions {report['pitch_px']} px apart, "
        f"batches of {report['batch_rows']}, {report['precision']}, {report['machine']['processor']}",
        f"  operations, counted over {counted['positions']} positions at {counted['gflop_per_position']:.3f} GFLOP:",
        f"    patch embeddings are {counted['embedding_share']:.2%} of the network; "
        f"{counted['embedding_left']:.2%} of them are left",
        f"    shared ÷ fresh {counted['shared_over_fresh']:.4f}; {least:.4f} if embeddings were free",
        f"    not shared: the first block's projections, {counted['first_projection_share']:.2%} of the network",
        f"  seconds, {timed['positions']} positions, {timed['rounds']} rounds in turn:",
    ]
    for key, words in (("by_the_clock", "by the clock"), ("by_processor_time", "by processor time")):
        ratio = timed[f"shared_over_fresh_{key}"]
        lines.append(f"    shared ÷ fresh {ratio['median']:.3f} [{ratio['min']:.3f} … {ratio['max']:.3f}] {words}")
    lines.append(f"  the two differ by at most {timed['max_abs_diff']:.1e}")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--region", help="X,Y,W,H in level-0 pixels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dense", default="16px", help="pitch of the map")
    parser.add_argument("--batch-rows", type=int, default=32)
    parser.add_argument("--count-batches", type=int, default=64, help="batches to count over, evenly spread; 0: all")
    parser.add_argument("--time-batches", type=int, default=3, help="batches to time, evenly spread")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    try:
        report = measure(arguments)
    except (PreprocessError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(to_text(report))  # noqa: T201
    print(f"  {write_report(report, arguments.out, 'dense')}")  # noqa: T201


if __name__ == "__main__":
    main()
