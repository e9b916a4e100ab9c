"""What an archive's run costs beside the scoring of its slides, and what a large archive takes.

- **ratio**: spots/s of ``m2ost rescore`` over copies of a real slide ÷ that of one ``m2ost predict`` of it, on one
  running server, in turn. Both from connecting to the last file, both draw the map of principal components. Every
  prediction and every archive gets copies that nothing has read yet. ``to scoring alone``: the same ÷ spots/s of the
  prediction between its first request and its last answer, which a run over an archive cannot exceed by overlapping.
- **resume**: the run in a process of its own, killed half-way; from starting it again to the first new spot.
- **memory**: what the client has filled itself, its peak over each half of an archive.
- **stages**: see :mod:`m2ost_loadtests.archive_stages`; **projection**: :mod:`m2ost_loadtests.archive_projection`.

Usage: python -m m2ost_loadtests.archive_speed --release DIR --slide FILE --copies 20 --out DIR
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from m2ost_client.archive import (
    Address,
    ArchiveReport,
    OnServer,
    Pool,
    Progress,
    Rescore,
    RescoreOptions,
    Settings,
    SlideRow,
    State,
    exclusive,
)
from m2ost_client.command import ServerOptions
from m2ost_client.options import PredictOptions
from m2ost_client.predict import predict_slide
from m2ost_client.stream import StreamOptions
from m2ost_client.supervisor import TritonServer
from m2ost_preprocess.slides import SlideRoots

from .archive_projection import Archive, Server, project
from .archive_speed_report import to_markdown
from .archive_stages import measure_stages
from .errors import LoadTestError, TargetError
from .machine import describe_machine, spread, write_report
from .soak import anonymous_mib

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


async def rescore(
    rows: Sequence[SlideRow],
    out: Path,
    address: Address,
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
    with exclusive(out):
        state = State(out)
        try:
            async with Pool([address]) as pool:
                report = await Rescore(rows, run_options, state, pool, OnServer(pool), on_progress=on_progress).run()
        finally:
            state.close()
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
    address : Address
        Of the server.
    """

    def __init__(self, options: SpeedOptions, folder: Path, scratch: Path, address: Address) -> None:
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
        began = time.perf_counter()
        report = asyncio.run(predict_slide(self.address.grpc, asked))
        seconds = time.perf_counter() - began
        n_spots = len(report.result.spots)
        if not n_spots or not report.complete:
            raise TargetError(f"{row.path}: no spots, or not all of them have a value; choose another --slide")
        return n_spots / seconds, n_spots / report.metadata["timings"]["score_s"]

    def rescore(self, copies: int) -> Run:
        """One undisturbed run over new copies."""
        rows, peaks, client = self.copies(copies), [0.0, 0.0], psutil.Process()

        def watch(progress: Progress) -> None:
            half = int(2 * progress.slides > progress.of_slides)
            peaks[half] = max(peaks[half], anonymous_mib(client, descendants=False))

        began = time.perf_counter()
        report = asyncio.run(rescore(rows, self.out(), self.address, self.options, watch))
        return Run(time.perf_counter() - began, report.summary["run"]["spots"], peaks)

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
    rows: Sequence[SlideRow], out: Path, address: Address, options: SpeedOptions, progress: Connection
) -> None:
    asyncio.run(rescore(rows, out, address, options, lambda p: progress.send(p.spots)))


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
            bench = Bench(options, folder, scratch, Address(server.address, server.metrics_url))
            bench.predict()  # what is loaded on first use is nobody's cost
            bench.rescore(1)
            predictions, runs = [], []
            for _ in range(options.rounds):
                predictions.append(bench.predict())
                runs.append(bench.rescore(options.copies))
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
        "machine": describe_machine(),
        "load_average_before": load_average,
        "slide": options.slide.name,
        "copies": options.copies,
        "rounds": options.rounds,
        "pitch_um": options.pitch_um,
        "batch_rows": options.batch_rows,
        "spots": runs[0].spots,
        **rates(predictions, runs),
        "resume": resumed,
        "memory_mib": [run.memory_mib for run in runs],
        "stages": {"medians": asdict(costs), "slides": stages, "written_spots": options.archive.spots_a_slide},
        "archive": asdict(options.archive),
        "server": {**asdict(options.server), "gpu_source": options.gpu_source},
        "projection": project(costs, options.archive, options.server, options.servers),
    }


def rates(predictions: Sequence[tuple[float, float]], runs: Sequence[Run]) -> dict[str, Any]:
    """Spots/s of runs and predictions, and their ratios, each of one round."""
    archive = [run.spots / run.seconds for run in runs]
    whole, scoring = zip(*predictions, strict=True)
    return {
        "spots_per_s": {"rescore": spread(archive), "predict": spread(whole), "predict_scoring_alone": spread(scoring)},
        "ratios": {
            "rescore/predict": spread([a / b for a, b in zip(archive, whole, strict=True)]),
            "rescore/predict_scoring_alone": spread([a / b for a, b in zip(archive, scoring, strict=True)]),
        },
    }


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    for name in ("copies", "rounds", "pitch_um", "batch_rows"):
        default = getattr(SpeedOptions, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    projected = parser.add_argument_group("projection")
    projected.add_argument("--slides", type=int, default=100_000)
    projected.add_argument("--spots-a-slide", type=int, default=10_000)
    projected.add_argument("--decoders", type=int, default=1, help="decoder processes a server")
    projected.add_argument("--gpu-spots-per-s", type=float, help="rate of the engine on a GPU; without it the CPU's")
    projected.add_argument("--gpu-source", help="where that rate comes from; goes with it")
    arguments = parser.parse_args()
    if (arguments.gpu_spots_per_s is None) != (arguments.gpu_source is None):
        parser.error("--gpu-spots-per-s and --gpu-source go together: a rate that nobody measured projects nothing")
    options = SpeedOptions(
        release=arguments.release,
        slide=arguments.slide.resolve(),
        copies=arguments.copies,
        rounds=arguments.rounds,
        pitch_um=arguments.pitch_um,
        batch_rows=arguments.batch_rows,
        archive=Archive(slides=arguments.slides, spots_a_slide=arguments.spots_a_slide),
        server=Server(decoders=arguments.decoders, gpu_spots_per_s=arguments.gpu_spots_per_s),
        gpu_source=arguments.gpu_source,
    )
    try:
        report = measure(options)
    except LoadTestError as error:
        raise SystemExit(f"error: {error}") from error
    text = to_markdown(report)
    path = write_report(report, arguments.out, "archive")
    path.with_suffix(".md").write_text(text)
    print(f"{text}\n{path}")  # noqa: T201


if __name__ == "__main__":
    main()
