"""An archive of very many very small slides: every one once, memory flat, and what a slide costs beside its spots.

The slides are squares of a real one, each other pixels. The run is drained after the first hundredth, when all that a
run needs is loaded, and half-way, and begun anew each time. Use a depth-1, narrow release: what is watched is
everything but the arithmetic.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from m2ost_client.archive import (
    ArchiveReport,
    Progress,
    Rescore,
    RescoreOptions,
    Settings,
    SlideList,
    read_slides,
    rescore,
)
from m2ost_client.server.command import ServerOptions
from m2ost_client.server.supervisor import TritonServer
from m2ost_loadtests.machine import describe_machine
from m2ost_preprocess.decoder import decoded_slide
from m2ost_preprocess.slides import SlideRoots
from PIL import Image

from ..process_memory import Memory, growth_mib, halves, memory_mib

SIDE_PX, PITCH_UM, MPP = 256, 64.0, 0.5
SAMPLES = 40
"""Moments at which memory is read, over all slides; fewer where a run finds some of them done."""


def cut_slides(slide: Path, folder: Path, n: int, *, seed: int = 0) -> None:
    """Write ``n`` squares of a slide, as JPEG files that hold no µm/px."""
    with decoded_slide(slide, threads=0) as source:
        corners = np.random.default_rng(seed).integers((0, 0), np.subtract(source.size, SIDE_PX), (n, 2))
        for i, (x, y) in enumerate(corners.tolist()):
            Image.fromarray(source.read(x, y, SIDE_PX, SIDE_PX)).save(folder / f"s{i:06d}.jpg")


def measure(release: Path, slide: Path, slides: int) -> dict[str, Any]:
    """Score ``slides`` small slides in three runs, and count.

    Returns
    -------
    dict
        ``runs``: the summary of each, without its slides; ``results``: result files in the end; ``scored_twice``: spots
        beyond those of all slides; ``slides_per_s`` of each run; ``memory_mib``: of client, server and its shared
        memory, over the slides that each run scores; ``growth_mib``: for each of these, by how much the peak of the
        second half of the second run is above that of its first half, and of the last run likewise; and the last run's
        peak above that of the run before, in the same process, where each run has threads of its own.
    """
    with tempfile.TemporaryDirectory(prefix="m2ost-archive-") as scratch:
        folder, out = Path(scratch, "slides"), Path(scratch, "out")
        folder.mkdir()
        out.mkdir()
        cut_slides(slide, folder, slides)
        slide_list = Path(scratch, "slides.csv")
        named = read_slides(str(folder)).rows
        pd.DataFrame([{"slide_id": row.slide_id, "path": row.path, "mpp": MPP} for row in named]).to_csv(
            slide_list, index=False
        )
        listed = read_slides(str(slide_list))
        roots = {"slides": folder}
        with TritonServer(ServerOptions(release=release, roots=SlideRoots(roots))) as server:
            runs = [_run(listed, out, server, until) for until in (max(2, slides // 100), slides // 2, slides)]
        results = len(list((out / "results").glob("*.h5ad")))
    summaries = [report.summary for report, _ in runs]
    last = summaries[-1]
    memory = [samples for _, samples in runs]
    return {
        "machine": describe_machine(),
        "slides": slides,
        "done": last["done"],
        "failed": len(last["failed"]),
        "results": results,
        "spots": last["spots"],
        "scored_twice": sum(s["run"]["spots"] for s in summaries) - last["spots"],
        "restarts": server.restarts,
        "memory_mib": memory,
        "growth_mib": {
            "second run": growth_mib(*halves(memory[1])),
            "last run": growth_mib(*halves(memory[2])),
            "last run after the second": growth_mib(memory[1], memory[2]),
        },
        "slides_per_s": [
            (s["done"] - s["of_them_skipped"]) / s["run"]["seconds"] for s in summaries if s["run"]["seconds"]
        ],
        "runs": [s["run"] for s in summaries],
    }


def _run(slides: SlideList, out: Path, server: TritonServer, until: int) -> tuple[ArchiveReport, list[Memory]]:
    samples: list[Memory] = []
    runs: list[Rescore] = []
    due = 0

    def watch(progress: Progress) -> None:
        nonlocal due
        if progress.spots and progress.slides >= due:
            due = progress.slides + max(1, len(slides.rows) // SAMPLES)
            samples.append(memory_mib(server))
        if progress.slides >= until < len(slides.rows):
            runs[0].drain()

    @contextmanager
    def served(roots: object) -> Iterator[TritonServer]:
        yield server

    def keep(run: Rescore) -> AbstractContextManager[None]:
        runs.append(run)
        return nullcontext()

    options = RescoreOptions(out=out, settings=Settings(pitch_um=PITCH_UM))
    return rescore(slides, options, serve=served, on_start=keep, on_progress=watch), samples


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a list."""
    rates = ", ".join(f"{rate:.1f}" for rate in report["slides_per_s"])
    lines = [
        "{done:,} of {slides:,} slides done, {failed} failed, {results:,} results; {spots:,} spots, {scored_twice} of "
        "them scored twice".format(**report),
        "",
        f"- {rates} slides/s in the runs that were drained and the last",
        *(
            f"- {name}, MiB: "
            + "; ".join(" ".join(f"{sample[name]:.0f}" for sample in run) for run in report["memory_mib"])
            for name in ("client", "server", "shared")
        ),
        *(
            f"- growth of the peak, {where}: " + ", ".join(f"{name} {mib:+.1f} MiB" for name, mib in growth.items())
            for where, growth in report["growth_mib"].items()
        ),
    ]
    return "\n".join(lines) + "\n"
