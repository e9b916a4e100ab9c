"""What a dense map with a tolerance computes, and how near it comes to the exact one, on a region of a slide.

Every place of the region is predicted once. Each tolerance then asks for its places, level by level, by the code of
``m2ost predict --dense --tolerance``, and is handed these predictions: so the predictions that it needs are counted
exactly, and its map is compared with the exact one at all places. Once for every cell of the region, as stock iStar
predicts, and once for those that are mostly tissue.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from m2ost.metrics import pearson
from m2ost_client.dense_levels import RefinedMap
from m2ost_client.dense_store import DenseStore
from m2ost_contract import ONNXRUNTIME_CPU, Release
from m2ost_loadtests.errors import LoadTestError
from m2ost_loadtests.machine import describe_machine
from m2ost_preprocess.decoder import DecodedSlide, decoded_slide
from m2ost_preprocess.slides.dense_grid import NOT_ASKED, DenseGrid, parse_pitch
from m2ost_preprocess.slides.rectangle import Rectangle
from m2ost_preprocess.slides.tissue import MASK_PX, Mask, tissue_mask
from m2ost_serving.engine import load_engine

EVERYWHERE, TISSUE = "everywhere", "tissue"


@dataclass(frozen=True, kw_only=True)
class RefinedMapOptions:
    """What to measure.

    Parameters
    ----------
    release : Path
    slide : Path
    region : str, optional
        ``X,Y,W,H`` in level-0 pixels; by default the whole slide.
    pitch : str
        Of the map, as ``m2ost predict --dense`` takes it.
    tolerances_sd : sequence of float
    batch_rows : int
        Positions a batch.
    """

    release: Path
    slide: Path
    region: str | None = None
    pitch: str = "16px"
    tolerances_sd: Sequence[float] = (0.25, 0.5, 1.0)
    batch_rows: int = 32


def measure(options: RefinedMapOptions, tell: Callable[[str], None] = lambda words: None) -> dict[str, Any]:
    """Predict the region, and make its map with every tolerance.

    Raises
    ------
    LoadTestError
        If a place of the region cannot be predicted.
    InputError
        If the pitch leaves nothing to refine.
    """
    release = Release.open(options.release)
    with decoded_slide(options.slide, geometry=release.engine.views) as slide:
        mask = tissue_mask(slide.thumbnail(MASK_PX))
        region = Rectangle.parse(options.region) if options.region else None
        grid = DenseGrid.over(slide.size, parse_pitch(options.pitch), region)
        exact = predict_all(release, slide, grid, mask, options.batch_rows, tell)
    maps = {
        where: {
            f"{sd:g}": refine(exact, grid, mask, sd, everywhere=where == EVERYWHERE) for sd in options.tolerances_sd
        }
        for where in (EVERYWHERE, TISSUE)
    }
    return {
        "machine": describe_machine(),
        "slide": options.slide.name,
        "region": options.region,
        "pitch_px": grid.pitch_px,
        "places": math.prod(grid.shape),
        "genes": exact.shape[-1],
        "precision": release.engine.precision,
        "trained": release.engine.trained,
        "release_sha256": release.engine.release_sha256,
        "checkpoint_sha256": release.engine.checkpoint_sha256,
        "maps": maps,
    }


def read_maps(file: Path) -> dict[str, Any]:
    """A report of :func:`measure` as it was written.

    Raises
    ------
    LoadTestError
        If the file holds none.
    """
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not {EVERYWHERE, TISSUE} <= report["maps"].keys():
            raise KeyError("maps")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadTestError(f"{file}: not a report of `m2ost bench dense` ({error!r})") from error
    return report


def predict_all(
    release: Release, slide: DecodedSlide, grid: DenseGrid, mask: Mask, rows: int, tell: Callable[[str], None]
) -> Any:
    """Every place of a map: float32, shape (rows, columns, genes)."""
    engine, names = load_engine(release, ONNXRUNTIME_CPU), release.engine.views.names
    exact = np.empty((*grid.shape, len(release.engine.genes)), np.float32)
    done = 0
    for block in grid.blocks(mask, everywhere=True):
        of_block = exact[block.area].reshape(-1, exact.shape[-1])
        for first in range(0, len(block.centers), rows):
            views = slide.views(block.centers[first : first + rows])
            of_block[first : first + rows] = engine.run(dict(zip(names, views, strict=True)))
        exact[block.area] = of_block.reshape(block.rows, block.columns, -1)
        done += len(block.centers)
        tell(f"{done:,} of {math.prod(grid.shape):,} places predicted")
    if not np.isfinite(exact).all():
        raise LoadTestError("a place of the region cannot be predicted; choose another --region")
    return exact


def refine(exact: Any, grid: DenseGrid, mask: Mask, tolerance_sd: float, *, everywhere: bool) -> dict[str, Any]:
    """Make the map of a tolerance out of predictions that are there; what it asked for, and how good it is.

    Returns
    -------
    dict
        ``predictions``: those that were asked for, with those for the check alone. ``r_per_gene``: with the exact map,
        at all places. ``other_s``: processor time of all but the predictions. ``refinement``: what the map says itself.
    """
    blocks = partial(grid.blocks, mask, everywhere=everywhere)
    genes, predictions, began = exact.shape[-1], 0, time.process_time()
    with tempfile.TemporaryDirectory(prefix="m2ost-refined-") as folder:
        names = tuple(map(str, range(genes)))
        with DenseStore(Path(folder), "map", grid, names, {}, refined=True) as store:
            made = RefinedMap(grid, blocks, store, genes, tolerance_sd)
            for level in range(made.begin(), len(made.steps)):
                for block, cells in made.waiting(level):
                    predicted = exact[block.area][tuple(cells.T)]
                    made.store(level, block, cells, predicted, np.zeros(len(cells), np.int8))
                    predictions += len(cells)
                made.end(level)
            facts = made.facts()["refinement"]
            _, stored = store.finish({})
        other_s = time.process_time() - began
        group = zarr.open_group(stored, mode="r")
        asked = np.asarray(group["status"]) != NOT_ASKED
        found = np.moveaxis(np.asarray(group["expression"]), 0, -1)[asked]
    r = pearson(exact[asked].astype(np.float64), found.astype(np.float64), axis=0)
    return {
        "places": int(asked.sum()),
        "predictions": predictions,
        "places_per_prediction": int(asked.sum()) / predictions,
        "r_per_gene": {"median": float(np.nanmedian(r)), "lowest": float(np.nanmin(r))},
        "other_s": other_s,
        "refinement": facts,
    }


def to_markdown(report: dict[str, Any]) -> str:
    """The report in words."""
    where = f"region {report['region']}" if report["region"] else "all of it"
    lines = [
        f"{report['slide']}, {where}: {report['places']:,} places {report['pitch_px']} px apart, "
        f"{report['genes']} genes, {report['precision']}, {report['machine']['processor']}",
        "",
        "| cells | tolerance | places | predictions | places a prediction | median r per gene with the exact map "
        "| lowest | by the map's own check | miss at its places, median, p95 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cells, maps in report["maps"].items():
        for tolerance, found in maps.items():
            check, r = found["refinement"]["check"], found["r_per_gene"]
            own = check["r_per_gene"] or {"median": float("nan"), "lowest": float("nan")}
            error = check["error_sd"]
            lines.append(
                f"| {cells} | {tolerance} sd | {found['places']:,} | {found['predictions']:,} "
                f"| {found['places_per_prediction']:.2f} | {r['median']:.4f} | {r['lowest']:.4f} "
                f"| {own['median']:.4f}, {own['lowest']:.4f} ({check['places']} places) "
                f"| {error['median'] or 0:.2f} sd, {error['p95'] or 0:.2f} sd |"
            )
    return "\n".join(lines) + "\n"
