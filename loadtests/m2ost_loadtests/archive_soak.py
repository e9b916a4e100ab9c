"""An archive of very many very small slides: every one once, memory flat, and what a slide costs beside its spots.

Usage: python -m m2ost_loadtests.archive_soak --release DIR --slide FILE --slides 10000 --out DIR

The slides are squares of a real one, each other pixels. The run is drained half-way and begun anew. Use a depth-1,
narrow release: what is watched is everything but the arithmetic.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from m2ost_client.archive import (
    Address,
    ArchiveReport,
    Pool,
    Progress,
    Rescore,
    RescoreOptions,
    Settings,
    Shared,
    SlideRow,
    State,
    exclusive,
    read_slides,
)
from m2ost_client.command import ServerOptions
from m2ost_client.supervisor import TritonServer
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides import SlideRoots
from PIL import Image

from .machine import describe_machine, write_report
from .soak import private_mib

SIDE_PX, PITCH_UM, MPP = 256, 64.0, 0.5
SAMPLES = 10


def cut_slides(slide: Path, folder: Path, n: int, *, seed: int = 0) -> None:
    """Write ``n`` squares of a slide, as JPEG files that hold no µm/px."""
    reader = open_slide(slide)
    corners = np.random.default_rng(seed).integers((0, 0), np.subtract(reader.size, SIDE_PX), (n, 2))
    for i, (x, y) in enumerate(corners.tolist()):
        Image.fromarray(reader.read(x, y, SIDE_PX, SIDE_PX)).save(folder / f"s{i:06d}.jpg")


def measure(release: Path, slide: Path, slides: int) -> dict[str, Any]:
    """Score ``slides`` small slides in two runs, and count.

    Returns
    -------
    dict
        ``runs``: the summary of each, without its slides; ``results``: result files in the end; ``scored_twice``: spots
        beyond those of all slides; ``client_mib``: memory at ten moments of each run; ``slides_per_s``.
    """
    with tempfile.TemporaryDirectory(prefix="m2ost-archive-") as scratch:
        folder, out = Path(scratch, "slides"), Path(scratch, "out")
        folder.mkdir()
        out.mkdir()
        cut_slides(slide, folder, slides)
        manifest = Path(scratch, "slides.csv")
        named = read_slides(str(folder)).rows
        pd.DataFrame([{"slide_id": row.slide_id, "path": row.path, "mpp": MPP} for row in named]).to_csv(
            manifest, index=False
        )
        rows = read_slides(str(manifest)).rows
        roots = {"slides": folder}
        memory: list[list[float]] = []
        with TritonServer(ServerOptions(release=release, roots=SlideRoots(roots))) as server, exclusive(out):
            reports = [asyncio.run(_run(rows, out, server, roots, until, memory)) for until in (slides // 2, slides)]
        summaries = [report.summary for report in reports]
        results = len(list((out / "results").glob("*.h5ad")))
    last = summaries[-1]
    return {
        "machine": describe_machine(),
        "slides": slides,
        "done": last["done"],
        "failed": len(last["failed"]),
        "results": results,
        "spots": last["spots"],
        "scored_twice": sum(s["run"]["spots"] for s in summaries) - last["spots"],
        "restarts": server.restarts,
        "client_mib": memory,
        "slides_per_s": [
            (s["done"] - s["of_them_skipped"]) / s["run"]["seconds"] for s in summaries if s["run"]["seconds"]
        ],
        "runs": [s["run"] for s in summaries],
    }


async def _run(
    rows: tuple[SlideRow, ...],
    out: Path,
    server: TritonServer,
    roots: dict[str, Path],
    until: int,
    memory: list[list[float]],
) -> ArchiveReport:
    client, samples = psutil.Process(), memory
    samples.append([])
    state = State(out)
    try:
        async with Pool([Address(server.address, server.metrics_url)], check=lambda: server.wait(0)) as pool:
            options = RescoreOptions(out=out, settings=Settings(pitch_um=PITCH_UM))

            def watch(progress: Progress) -> None:
                if progress.slides >= len(samples[-1]) * len(rows) // SAMPLES:
                    samples[-1].append(private_mib(client, descendants=False))
                if progress.slides >= until < len(rows):
                    run.drain()

            run = Rescore(rows, options, state, pool, Shared(pool, roots), on_progress=watch)
            return await run.run()
    finally:
        state.close()


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    report = measure(arguments.release, arguments.slide, arguments.slides)
    rates = ", ".join(f"{rate:.1f}" for rate in report["slides_per_s"])
    lines = [
        "{done:,} of {slides:,} slides done, {failed} failed, {results:,} results; {spots:,} spots, {scored_twice} of "
        "them scored twice".format(**report),
        f"{rates} slides/s before and after the interruption",
        "client's memory, MiB: " + "; ".join(" ".join(f"{mib:.0f}" for mib in run) for run in report["client_mib"]),
        str(write_report(report, arguments.out, "archive-soak")),
    ]
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
