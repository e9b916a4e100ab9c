"""Threads of engine and tiler on a CPU that they share: served ÷ bare for several splits, interleaved.

Every split is a server of its own, of the same release with other parameters in the configs of both; in each round
each scores the slide once, and so does a bare ONNX Runtime session on all cores, on views that lie ready.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from m2ost_client.server.command import DEFAULT_PROFILE, ServerOptions
from m2ost_client.server.supervisor import TritonServer
from m2ost_client.stream import StreamOptions
from m2ost_contract import (
    MODEL_ENGINE,
    MODEL_TILER,
    RUNS_PARAMETER,
    SPINNING_PARAMETER,
    THREADS_PARAMETER,
    Manifest,
    sha256_file,
)
from m2ost_loadtests.rounds import spread_text, time_in_turn
from m2ost_loadtests.runners import bare_runner, served_runner, spots_to_score
from m2ost_preprocess.slides import SlideRoots
from m2ost_serving.repository import parse_config
from m2ost_serving.tiler import THREADS_PARAMETER as TILER_THREADS_PARAMETER

OPENVINO_PROFILE = "cpu-openvino"


@dataclass(frozen=True)
class Split:
    """How engine and tiler take their shares of the cores.

    Parameters
    ----------
    profile : str
        Triton's ``--model-config-name``.
    threads : int
        Of the engine.
    spinning : bool
        Whether these spin while they wait.
    tiler_threads : str
        Of the tiler, beside the one that reads.
    runs : int
        Batches that the engine runs at a time.
    """

    profile: str
    threads: int
    spinning: bool = False
    tiler_threads: str = "all"
    runs: int = 1

    def __str__(self) -> str:
        spinning = ", spinning" if self.spinning else ""
        runs = f", {self.runs} runs at a time" if self.runs > 1 else ""
        return f"{self.profile}, {self.threads} thread(s){runs}{spinning}, tiler {self.tiler_threads}"


def splits(cores: int) -> list[Split]:
    """Those worth a measurement: all cores or one less, what spins, and fewer threads for the tiler."""
    counts = sorted({cores, max(1, cores - 1)}, reverse=True)
    found = [Split(DEFAULT_PROFILE, n, spinning) for n in counts for spinning in (False, True)]
    found += [Split(DEFAULT_PROFILE, cores, tiler_threads=n) for n in ("0", "1")]
    found += [Split(OPENVINO_PROFILE, n) for n in counts]
    several = sorted({2, cores} - {1}) if cores > 1 else []
    return found + [Split(profile, cores, runs=n) for profile in (DEFAULT_PROFILE, OPENVINO_PROFILE) for n in several]


def release_with(release: Path, split: Split, folder: Path) -> Path:
    """A copy of a release whose configs ask for a split, with a manifest that says so."""
    copy = Path(tempfile.mkdtemp(dir=folder)) / "release"
    shutil.copytree(release, copy)
    manifest = Manifest.read(copy)
    asked = {
        MODEL_ENGINE: {
            THREADS_PARAMETER: str(split.threads),
            RUNS_PARAMETER: str(split.runs),
            SPINNING_PARAMETER: str(int(split.spinning)),
        },
        MODEL_TILER: {TILER_THREADS_PARAMETER: split.tiler_threads},
    }
    for model, parameters in asked.items():
        named = copy / model / "configs" / f"{split.profile}.pbtxt"
        path = named if named.is_file() else copy / model / "config.pbtxt"
        config = parse_config(path.read_text(encoding="utf-8"))
        for name, value in parameters.items():
            config.parameters[name].string_value = value
        path.write_text(text_format.MessageToString(config, as_utf8=True), encoding="utf-8")
        manifest.files[str(path.relative_to(copy))] = sha256_file(path)
    manifest.write(copy)
    return copy


def measure(release: Path, slide: Path, *, pitch_um: float, rounds: int) -> dict[str, Any]:
    """Time all splits in turn.

    Parameters
    ----------
    release, slide : Path
    pitch_um : float
        Pitch of the grid of spots in µm.
    rounds : int

    Raises
    ------
    TargetError
        If the slide carries no µm/px or has no spots.
    """
    slide, stream = slide.resolve(), StreamOptions()
    centers = spots_to_score(slide, pitch_um)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="m2ost-threads-")))
        runners: dict[str, Callable[[], Any]] = {"bare": bare_runner(release, slide, centers, stream.batch_rows)}
        for split in splits(len(os.sched_getaffinity(0))):
            options = ServerOptions(
                release=release_with(release, split, folder),
                roots=SlideRoots({"bench": slide.parent}),
                profile=split.profile,
            )
            server = stack.enter_context(TritonServer(options))
            runners[str(split)] = served_runner(server.address, f"bench/{slide.name}", centers, stream)
        for run in runners.values():
            run()
        timed = time_in_turn(runners, rounds)
    times_as_fast = timed.map(lambda seconds: seconds.clock).ratios("bare")
    return {
        **timed.facts(),
        "slide": slide.name,
        "spots": len(centers),
        "served_as_a_multiple_of": "a bare ONNX Runtime session on all cores",
        "splits": {name: ratio for name, ratio in times_as_fast.items() if name != "bare"},
    }


def to_markdown(report: dict[str, Any]) -> str:
    """The splits as a table."""
    lines = [
        f"{report['spots']} spots of {report['slide']}, {report['rounds']} rounds, {report['machine']['processor']}",
        "",
        "| split | served ÷ bare |",
        "|---|---|",
        *(f"| {name} | {spread_text(ratio, '.3f')} |" for name, ratio in report["splits"].items()),
    ]
    return "\n".join(lines) + "\n"
