"""What an archive's run costs beside the scoring of its slides, and what a large archive takes.

- **ratio**: spots/s of ``m2ost rescore`` over copies of a real slide ÷ that of one ``m2ost predict`` of it, on one
  running server, in turn. Both from connecting to the last file, both draw the map of principal components. Every
  prediction and every archive gets copies that nothing has read yet. ``to scoring alone``: the same ÷ spots/s of the
  prediction between its first request and its last answer, which a run over an archive cannot exceed by overlapping.
- **resume**: the run in a process of its own, killed half-way; from starting it again to the first new spot.
- **memory**: what the client has filled itself, its peak over each half of an archive.
- **stages**: see :mod:`m2ost_bench.archive.stages`; **projection**: :mod:`m2ost_bench.archive.projection`.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from m2ost_client import archive
from m2ost_client.archive import ArchiveReport, Progress, RescoreOptions, Servers, Settings, SlideList, SlideRow
from m2ost_client.options import PredictOptions
from m2ost_client.predict import predict_slide
from m2ost_client.server.command import ServerOptions
from m2ost_client.server.supervisor import TritonServer
from m2ost_client.stream import StreamOptions
from m2ost_loadtests.errors import LoadTestError, TargetError
from m2ost_loadtests.rounds import Rounds, interleave, timed
from m2ost_preprocess.slides import SlideRoots

from ..process_memory import anonymous_mib
from .projection import Archive, Server, project
from .stages import measure_stages

ROOT = "archive"
STAGED_SLIDES = 4
PATIENCE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """What is measured.

    Parameters
    ----------
    release, slide : Path
    copies : int
        Slides of the archive.
    rounds : int
    pitch_um : float
        Pitch of the grid in µm: it sets how long a round takes.
    batch_rows : int
        Spots a request, of both.
    archive : Archive
        That is projected.
    server : Server
        On so many of which it is.
    servers : tuple of int
    gpu_source : str, optional
        Where the GPU's rate comes from, in words.

    Raises
    ------
    LoadTestError
        If a GPU's rate is given without its source, or the reverse.
    """

    release: Path
    slide: Path
    copies: int = 20
    rounds: int = 3
    pitch_um: float = 100.0
    batch_rows: int = 16
    archive: Archive = field(default_factory=lambda: Archive(slides=100_000, spots_a_slide=10_000))
    server: Server = field(default_factory=Server)
    servers: tuple[int, ...] = (1, 2, 4, 8, 16)
    gpu_source: str | None = None

    def __post_init__(self) -> None:
        if (self.server.gpu_spots_per_s is None) != (self.gpu_source is None):
            raise LoadTestError(
                "--gpu-spots-per-s and --gpu-source go together: a rate that nobody measured projects nothing"
            )


@dataclass(frozen=True)
class Run:
    """One run over an archive.

    Parameters
    ----------
    seconds : float
        From connecting to the table of all slides.
    spots : int
        Scored in it.
    memory_mib : list of float
        Peak of the client's memory over each half of the slides.
    """

    seconds: float
    spots: int
    memory_mib: list[float]


def rescore(
    rows: Sequence[SlideRow],
    out: Path,
    address: str,
    options: SpeedOptions,
    on_progress: Callable[[Progress], None],
) -> ArchiveReport:
    """Run over an archive as ``m2ost rescore`` does.

    Raises
    ------
    TargetError
        If a slide has no result.
    """
    run_options = RescoreOptions(
        out=out, settings=Settings(pitch_um=options.pitch_um), batch_rows=options.batch_rows, genes=()
    )
    servers = Servers(addresses=(address,))
    report = archive.rescore(SlideList(tuple(rows)), run_options, servers, on_progress=on_progress)
    if not report.complete:
        raise TargetError(f"not every spot has a value: {report.summary['failed']}")
    return report


class Bench:
    """A server, and copies of a slide that nothing has read.

    Parameters
    ----------
    options : SpeedOptions
    folder : Path
        An empty folder: the server's root.
    scratch : Path
        An empty folder for results.
    address : str
        Of the server.
    """

    def __init__(self, options: SpeedOptions, folder: Path, scratch: Path, address: str) -> None:
        self.options, self.folder, self.scratch, self.address = options, folder, scratch, address
        self._numbers = itertools.count()

    def copies(self, n: int) -> list[SlideRow]:
        """``n`` new copies of the slide."""
        rows = []
        for _ in range(n):
            path = self.folder / f"s{next(self._numbers):04d}{self.options.slide.suffix}"
            shutil.copyfile(self.options.slide, path)
            rows.append(SlideRow(path.stem, f"{ROOT}/{path.name}"))
        return rows

    def out(self) -> Path:
        """A new folder for results."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def predict(self) -> tuple[float, float]:
        """Spots/s of one prediction: from connecting to the last file, and of its scoring alone."""
        (row,) = self.copies(1)
        stream = StreamOptions(batch_rows=self.options.batch_rows)
        asked = PredictOptions(slide=row.path, out=self.out(), pitch_um=self.options.pitch_um, stream=stream)
        report, seconds = timed(lambda: asyncio.run(predict_slide(self.address, asked)))
        n_spots = len(report.result.spots)
        if not n_spots or not report.complete:
            raise TargetError(f"{row.path}: no spots, or not all of them have a value; choose another --slide")
        return n_spots / seconds.clock, n_spots / report.metadata["timings"]["score_s"]

    def rescore(self, copies: int) -> Run:
        """One undisturbed run over new copies."""
        rows, peaks, client = self.copies(copies), [0.0, 0.0], psutil.Process()

        def watch(progress: Progress) -> None:
            half = int(2 * progress.slides > progress.of_slides)
            peaks[half] = max(peaks[half], anonymous_mib(client, descendants=False))

        report, seconds = timed(lambda: rescore(rows, self.out(), self.address, self.options, watch))
        return Run(seconds.clock, report.summary["run"]["spots"], peaks)

    def resume(self, copies: int, spots: int) -> dict[str, Any]:
        """Kill a run once half of its spots are scored, begin it again, and let it end.

        Parameters
        ----------
        copies : int
        spots : int
            Of all of them.
        """
        rows, out = self.copies(copies), self.out()
        process, progress, _ = self._begin(rows, out)
        while progress.recv() < spots // 2:
            pass
        process.kill()
        process.join()
        process, progress, began = self._begin(rows, out)
        while progress.recv() == 0:
            pass
        seconds = time.monotonic() - began
        scored = 0
        try:
            while True:
                scored = progress.recv()
        except EOFError:
            process.join()
        if process.exitcode != 0:
            raise TargetError(f"the run that was begun again ended with {process.exitcode}")
        return {"to_first_new_spot_s": seconds, "killed_after_spots": spots // 2, "spots_of_second_run": scored}

    def _begin(self, rows: Sequence[SlideRow], out: Path) -> tuple[Any, Connection, float]:
        spawn = multiprocessing.get_context("spawn")
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_rescore_apart, args=(rows, out, self.address, self.options, sender))
        began = time.monotonic()
        process.start()
        sender.close()
        if not receiver.poll(PATIENCE_S):
            raise TargetError(f"a run scored nothing within {PATIENCE_S:.0f} s")
        return process, receiver, began


def _rescore_apart(
    rows: Sequence[SlideRow], out: Path, address: str, options: SpeedOptions, progress: Connection
) -> None:
    rescore(rows, out, address, options, lambda p: progress.send(p.spots))


def measure(options: SpeedOptions) -> dict[str, Any]:
    """Measure all of it.

    Returns
    -------
    dict
        ``load_average_before``: of the machine; where others hold the cores the ranges are wide. ``spots_per_s`` and
        ``ratios`` as spreads over the rounds, ``resume``, ``memory_mib``, ``stages``, ``projection``.

    Raises
    ------
    TargetError
        If the slide cannot be used.
    """
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="m2ost-archive-") as parent:
        folder, scratch = Path(parent, "slides"), Path(parent, "out")
        folder.mkdir()
        scratch.mkdir()
        roots = SlideRoots({ROOT: folder})
        with TritonServer(ServerOptions(release=options.release, roots=roots)) as server:
            bench = Bench(options, folder, scratch, server.address)
            bench.predict()  # what is loaded on first use is nobody's cost
            bench.rescore(1)
            measures: dict[str, Callable[[], Any]] = {
                "predict": bench.predict,
                "rescore": partial(bench.rescore, options.copies),
            }
            found = interleave(measures, options.rounds)
            runs: Sequence[Run] = found.found["rescore"]
            resumed = bench.resume(options.copies, runs[0].spots)
        costs, stages = measure_stages(
            options.release,
            [folder / Path(row.path).name for row in bench.copies(STAGED_SLIDES)],
            scratch / "stages",
            settings=Settings(pitch_um=options.pitch_um),
            batch_rows=options.batch_rows,
            written_spots=options.archive.spots_a_slide,
        )
    return {
        **found.facts(),
        "load_average_before": load_average,
        "slide": options.slide.name,
        "copies": options.copies,
        "pitch_um": options.pitch_um,
        "batch_rows": options.batch_rows,
        "spots": runs[0].spots,
        **rates(found.found["predict"], runs),
        "resume": resumed,
        "memory_mib": [run.memory_mib for run in runs],
        "stages": {"medians": asdict(costs), "slides": stages, "written_spots": options.archive.spots_a_slide},
        "archive": asdict(options.archive),
        "server": {**asdict(options.server), "gpu_source": options.gpu_source},
        "projection": project(costs, options.archive, options.server, options.servers),
    }


def rates(predictions: Sequence[tuple[float, float]], runs: Sequence[Run]) -> dict[str, Any]:
    """Spots/s of runs and predictions, and their ratios, each of one round."""
    whole, scoring = zip(*predictions, strict=True)
    archive = [run.spots / run.seconds for run in runs]
    found = Rounds({"rescore": archive, "predict": whole, "predict_scoring_alone": scoring})
    others = ("predict", "predict_scoring_alone")
    return {
        "spots_per_s": found.spreads(),
        "ratios": {f"rescore/{other}": found.ratio("rescore", other) for other in others},
    }
