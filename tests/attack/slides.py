"""Evil slides, each asked for beside a good one: what is said of it, what it costs, and what the other client sees.

The files of a folder; without one, those that ``tests.compat.evil`` makes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from m2ost_client import TritonServer
from m2ost_loadtests.machine import describe_machine
from m2ost_preprocess.network import channel_options
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides import SlideRoots

from tests.compat import evil

from . import grammar, overload, target
from .overload import message, send
from .target import Slide

ROOT = "evil"
DEADLINE_S = 200.0
"""Beyond the decoder's own limits: its words come first."""

GOOD_ROWS, GOOD_REQUESTS = 2, 40
WORDS = 300


def make_slides(folder: Path, slide: Path) -> None:
    """Bombs of every codec, claims, loops, giant tiles, pipes, and a slide that ends too early."""
    evil.bombs(folder)
    evil.compressed_bombs(folder)
    evil.truncations(folder, slide)
    evil.blockers(folder)


def run(release: Path, slide: Path, folder: Path) -> dict[str, Any]:
    """Ask for every file of a folder, the good slide beside it."""
    roots = SlideRoots({"wsi": slide.parent, ROOT: folder})
    good = Slide(f"wsi/{slide.name}", open_slide(slide).size)
    faults: list[str] = []
    with target.served(release, roots) as (server, log):
        secrets = target.folders_of(server)
        asyncio.run(_good(server, good, GOOD_REQUESTS))
        alone = asyncio.run(_good(server, good, GOOD_REQUESTS))
        found = []
        for path in sorted(folder.iterdir()):
            alive, at = target.processes(server), len(log)
            row = asyncio.run(_ask(server, good, f"{ROOT}/{path.name}"))
            found.append(row)
            if target.processes(server) != alive:
                faults.append(f"{path.name}: a process of the server died")
            for words in row["words"].values():
                faults += [f"{path.name}: tells {secret}: {words}" for secret in secrets if secret in words]
            faults += [f"{path.name}: {status}" for status in row["statuses"].values() if status == "DEADLINE_EXCEEDED"]
            faults += [f"{path.name}: good requests beside it: {row['good_statuses']}"] * (
                set(row["good_statuses"]) != {"OK"}
            )
            faults += [f"{path.name}: a traceback in the log: {words}" for words in log.frames(at)[:1]]
    return {
        "what": "evil slides, what was said of them, and what they cost",
        "machine": describe_machine(),
        "faults": faults,
        "good_slide_alone": overload.quantiles_ms(alone[1]),
        "worst_p95_ratio": round(
            max(row["good_slide_beside_it"]["p95_ms"] for row in found) / overload.quantiles_ms(alone[1])["p95_ms"], 2
        ),
        "slowest_file_s": max(row["seconds"] for row in found),
        "decoders_peak_mib": max(row["decoders_peak_mib"] for row in found),
        "files": found,
    }


async def _ask(server: TritonServer, good: Slide, name: str) -> dict[str, Any]:
    """Describe a file and ask for spots of it, while another client asks for the good slide."""
    began = time.monotonic()
    centers = np.array([[100, 100], [200, 200]], np.int32)
    ground = [
        grammar.Tensor("SLIDE", "BYTES", [1], [name.encode()]),
        grammar.Tensor("PITCH_UM", "FP64", [1], np.array([100.0])),
        grammar.Tensor("MPP", "FP64", [1], np.array([0.5])),
    ]
    asked = {
        "slide_info": bytes(grammar.request("slide_info", ground).SerializeToString()),
        "m2ost_slide": message(Slide(name, (0, 0)), centers),
    }
    peaks: list[float] = []
    watching = asyncio.ensure_future(_watch_decoders(server, peaks))
    beside = asyncio.ensure_future(_good(server, good, GOOD_REQUESTS))
    async with grpc.aio.insecure_channel(server.address, channel_options(server.address)) as channel:
        answers = await asyncio.gather(*(_words(channel, data) for data in asked.values()))
    seconds = time.monotonic() - began
    statuses, served = await beside
    watching.cancel()
    return {
        "file": name,
        "statuses": {model: status for model, (status, _) in zip(asked, answers, strict=True)},
        "words": {model: words for model, (_, words) in zip(asked, answers, strict=True)},
        "seconds": round(seconds, 2),
        "decoders_peak_mib": round(max(peaks, default=0.0), 1),
        "good_statuses": sorted(set(statuses)),
        "good_slide_beside_it": overload.quantiles_ms(served),
    }


async def _words(channel: Any, data: bytes) -> tuple[str, str]:
    try:
        await channel.unary_unary(grammar.SERVICE + grammar.INFER)(data, timeout=DEADLINE_S)
        return "OK", ""
    except grpc.aio.AioRpcError as error:
        return error.code().name, str(error.details() or "")[:WORDS]


async def _good(server: TritonServer, good: Slide, count: int) -> tuple[list[str], list[float]]:
    """Statuses and seconds of requests for the good slide, one after the other."""
    random = np.random.default_rng(9)
    async with grpc.aio.insecure_channel(server.address, channel_options(server.address)) as channel:
        found = []
        for _ in range(count):
            centers = random.integers((0, 0), good.size, (GOOD_ROWS, 2))
            found.append(await send(channel, 0, message(good, centers), DEADLINE_S))
            await asyncio.sleep(0.02)
    return [a.status for a in found], [a.seconds for a in found]


async def _watch_decoders(server: TritonServer, peaks: list[float]) -> None:
    """Note the memory of the processes that read slides, in MiB, again and again."""
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            peaks.append(sum(psutil.Process(pid).memory_info().rss for pid in target.decoders(server)) / (1 << 20))
        await asyncio.sleep(0.02)
