"""More requests than a server can serve: what it serves then, how fast it refuses, and who waits behind whom.

Figures, and no thresholds: a slow machine fails nothing here. Only counts are held: every request is answered once.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from m2ost_client import SpotStream, StreamOptions, TritonServer
from m2ost_client.archive import Rescore, RescoreOptions, Servers, Settings, SlideList, SlideRow, rescore
from m2ost_loadtests.machine import describe_machine
from m2ost_preprocess.network import channel_options, read_url

from . import grammar
from .grammar import Tensor
from .requests import outputs_of
from .target import Slide

ROWS = 8
"""Spots a request of the closed and the open load."""

MESSAGES = 48
CLOSED = 8
"""Requests under way while capacity is measured."""

OFFERED = 4.0
"""Offered load over capacity."""

PATIENCE_S = 120.0
CANCELLED, CANCELLED_ROWS, CANCELLED_AFTER_S = 60, 32, 0.4
INTERACTIVE_ROWS = 2
ARCHIVE_PITCH_UM = 10.0
"""So dense that the archive's run outlasts what is measured beside it."""

_SPOTS = re.compile(r"^m2ost_tiler_spots_total\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Answered:
    """One request's end.

    Parameters
    ----------
    number : int
        Of its message.
    status : str
    began_s, ended_s : float
    outputs : dict
        Empty where it failed.
    """

    number: int
    status: str
    began_s: float
    ended_s: float
    outputs: dict[str, bytes]

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s


def message(slide: Slide, centers: np.ndarray[Any, Any]) -> bytes:
    """A request of ``m2ost_slide``."""
    n = len(centers)
    tensors = [
        Tensor("SLIDE", "BYTES", [n, 1], [slide.name.encode()] * n, True),
        Tensor("CENTER", "INT32", [n, 2], centers.astype(np.int32), True),
        Tensor("SCALE", "FP32", [n, 1], np.ones((n, 1), np.float32), True),
    ]
    return bytes(grammar.request("m2ost_slide", tensors).SerializeToString())


def messages(slide: Slide, rows: int, count: int, seed: int = 0) -> list[bytes]:
    """Requests for spots all over the slide."""
    random = np.random.default_rng(seed)
    return [message(slide, random.integers((0, 0), slide.size, (rows, 2))) for _ in range(count)]


async def send(channel: Any, number: int, data: bytes, timeout_s: float = PATIENCE_S) -> Answered:
    """Send one request once."""
    began = time.monotonic()
    try:
        call = channel.unary_unary(grammar.SERVICE + grammar.INFER)
        answer = await call(data, timeout=timeout_s)
        return Answered(number, "OK", began, time.monotonic(), outputs_of(answer))
    except grpc.aio.AioRpcError as error:
        return Answered(number, error.code().name, began, time.monotonic(), {})


async def closed_load(address: str, sent: Sequence[bytes], in_flight: int, seconds: float) -> list[Answered]:
    """Keep so many requests under way for some time."""
    found: list[Answered] = []
    until, number = time.monotonic() + seconds, 0

    async def client(channel: Any) -> None:
        nonlocal number
        while time.monotonic() < until:
            number += 1
            found.append(await send(channel, number % len(sent), sent[number % len(sent)]))

    async with grpc.aio.insecure_channel(address, channel_options(address)) as channel:
        await asyncio.gather(*(client(channel) for _ in range(in_flight)))
    return found


async def open_load(address: str, sent: Sequence[bytes], per_s: float, seconds: float) -> list[Answered]:
    """Send at a rate, whatever becomes of the requests before; returns when all have ended."""
    calls = []
    async with grpc.aio.insecure_channel(address, channel_options(address)) as channel:
        began = time.monotonic()
        for i in range(max(1, round(per_s * seconds))):
            await asyncio.sleep(began + i / per_s - time.monotonic())
            calls.append(asyncio.ensure_future(send(channel, i % len(sent), sent[i % len(sent)])))
        return await asyncio.gather(*calls)


def spots_cut(metrics_url: str) -> float:
    """Spots that the tiler has cut so far, by the server's own metrics."""
    return sum(float(value) for value in _SPOTS.findall(read_url(metrics_url, 20.0)))


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float | int]:
    """How many, and their median, 95th percentile and most in ms."""
    if not len(seconds):
        return {"count": 0}
    median, p95, slowest = np.percentile(seconds, (50, 95, 100)) * 1000
    return {
        "count": len(seconds),
        "median_ms": round(median, 1),
        "p95_ms": round(p95, 1),
        "slowest_ms": round(slowest, 1),
    }


def overload(server: TritonServer, slide: Slide, *, seconds: float = 20.0) -> dict[str, Any]:
    """Capacity, what is left of it at ``OFFERED`` times as much, refusals, and an interactive client by an archive."""
    sent = messages(slide, ROWS, MESSAGES)
    faults: list[str] = []
    asyncio.run(closed_load(server.address, sent, CLOSED, seconds / 4))  # decodes the slide
    alone = asyncio.run(closed_load(server.address, sent, CLOSED, seconds))
    known = {answered.number: answered.outputs for answered in alone if answered.status == "OK"}
    capacity = sum(a.status == "OK" for a in alone) / (max(a.ended_s for a in alone) - min(a.began_s for a in alone))
    offered = asyncio.run(open_load(server.address, sent, OFFERED * capacity, seconds))
    began, ended = min(a.began_s for a in offered), max(a.began_s for a in offered)
    good = [a for a in offered if a.status == "OK"]
    in_time = [a for a in good if a.ended_s <= ended]
    statuses = Counter(a.status for a in offered)
    if unexpected := set(statuses) - {"OK", "UNAVAILABLE"}:
        faults.append(f"requests were neither served nor refused: {sorted(unexpected)}, {dict(statuses)}")
    if wrong := sum(a.outputs != known.get(a.number, a.outputs) for a in good):
        faults.append(f"{wrong} answers differ from those to the same requests before")
    refused = [a.seconds for a in offered if a.status == "UNAVAILABLE"]
    alone_s = asyncio.run(interactive(server.address, slide, 60))
    beside_s, archive_spots = asyncio.run(_beside_archive(server, slide, 60))
    return {
        "what": "a server under more load than it can serve",
        "machine": describe_machine(),
        "faults": faults,
        "rows_a_request": ROWS,
        "capacity_spots_per_s": round(capacity * ROWS, 1),
        "offered_spots_per_s": round(OFFERED * capacity * ROWS, 1),
        "sent": len(offered),
        "statuses": dict(statuses),
        "goodput_spots_per_s": round(len(in_time) * ROWS / (ended - began), 1),
        "goodput_over_capacity": round(len(in_time) / (ended - began) / capacity, 3),
        "served_latency": quantiles_ms([a.seconds for a in good]),
        "refused_latency": quantiles_ms(refused),
        "interactive_alone": quantiles_ms(alone_s),
        "interactive_beside_archive": quantiles_ms(beside_s),
        "interactive_p95_ratio": round(float(np.percentile(beside_s, 95) / np.percentile(alone_s, 95)), 2),
        "archive_spots_meanwhile": archive_spots,
    }


async def interactive(address: str, slide: Slide, requests: int, *, pause_s: float = 0.05) -> list[float]:
    """Seconds of each request of a client that asks for two spots at a time and then looks at them."""
    random, seconds = np.random.default_rng(5), []
    async with SpotStream(address, StreamOptions(batch_rows=INTERACTIVE_ROWS, window=1)) as stream:
        for _ in range(requests):
            centers = random.integers((0, 0), slide.size, (INTERACTIVE_ROWS, 2))
            began = time.monotonic()
            async for batch in stream.predict(slide.name, centers):
                seconds.append(time.monotonic() - began)
                assert not batch.status.any()
            await asyncio.sleep(pause_s)
    return seconds


async def _beside_archive(server: TritonServer, slide: Slide, requests: int) -> tuple[list[float], int]:
    """The same while an archive is scored; and the spots that it scored meanwhile."""
    done, began, over, runs = 0, threading.Event(), threading.Event(), []

    def note(progress: Any) -> None:
        nonlocal done
        done = progress.spots
        began.set()
        if over.is_set():
            runs[0].drain()

    def keep(run: Rescore) -> AbstractContextManager[None]:
        runs.append(run)
        return nullcontext()

    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        options = RescoreOptions(out=Path(folder), settings=Settings(pitch_um=ARCHIVE_PITCH_UM))
        slides, servers = SlideList((SlideRow("dense", slide.name),)), Servers(addresses=(server.address,))
        run = asyncio.ensure_future(
            asyncio.to_thread(rescore, slides, options, servers, on_start=keep, on_progress=note)
        )
        await asyncio.to_thread(began.wait, PATIENCE_S)
        before = done
        seconds = await interactive(server.address, slide, requests)
        scored = done - before
        over.set()
        await run
    return seconds, scored


def cancel(server: TritonServer, slide: Slide) -> dict[str, Any]:
    """What is cut for clients that are gone, and how long the next one waits behind them."""
    return asyncio.run(_cancel(server, slide))


async def _cancel(server: TritonServer, slide: Slide) -> dict[str, Any]:
    sent = messages(slide, CANCELLED_ROWS, CANCELLED, seed=3)
    async with grpc.aio.insecure_channel(server.address, channel_options(server.address)) as channel:
        first = await send(channel, 0, messages(slide, 2, 1)[0])
        before = spots_cut(server.metrics_url)
        call = channel.unary_unary(grammar.SERVICE + grammar.INFER)
        calls = [call(data, timeout=PATIENCE_S) for data in sent]
        await asyncio.sleep(CANCELLED_AFTER_S)
        for one in calls:
            one.cancel()
        at_cancel = await asyncio.to_thread(spots_cut, server.metrics_url)
        following = await send(channel, 0, messages(slide, 2, 1)[0])
        at_rest, deadline = -1.0, time.monotonic() + PATIENCE_S
        while (
            now := await asyncio.to_thread(spots_cut, server.metrics_url)
        ) != at_rest and time.monotonic() < deadline:
            at_rest = now
            await asyncio.sleep(2)
        await asyncio.gather(*calls, return_exceptions=True)
    faults = (
        [] if following.status == "OK" and following.outputs == first.outputs else ["the next client is not served"]
    )
    return {
        "what": "requests that are cancelled while the server is at them",
        "machine": describe_machine(),
        "faults": faults,
        "requests": CANCELLED,
        "rows_a_request": CANCELLED_ROWS,
        "cancelled_after_s": CANCELLED_AFTER_S,
        "spots_cut_before": at_cancel - before,
        "spots_cut_for_nobody": at_rest - at_cancel - 2,
        "next_client_waits_s": round(following.seconds, 3),
        "alone_it_takes_s": round(first.seconds, 3),
    }
