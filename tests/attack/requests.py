"""Ten thousand hostile requests to a served release, in blocks; after each the server must be what it was.

Every answer is an error of an expected kind or a result that can be one. No process dies, nothing outside the slide
roots is opened, no answer tells a path of the machine, the log stays short, and memory flat.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from m2ost_bench.process_memory import anonymous_mib, shared_mib
from m2ost_client import TritonServer
from m2ost_contract import SCALE_MAX, SCALE_MIN
from m2ost_loadtests.machine import describe_machine
from m2ost_preprocess.network import channel_options
from tritonclient.grpc import service_pb2 as pb

from . import grammar, target
from .grammar import Attack, Ground
from .target import Log, Watch

BLOCK = 250
IN_FLIGHT = 24
"""Requests under way at a time: fewer than may wait, so that none is refused for being one too many."""

DEADLINE_S = 60.0
"""A request without an answer after this is a fault: each of them costs the server a second at most."""

RESTED_S = 120.0
LONGEST_RECORD_BYTES = 16_384
MEAN_LOG_BYTES = 4_096
LONGEST_WORDS = 4_096
GROWTH_MIB = 128.0
"""Least of the last third of the blocks over that of the second: 20 KiB a request that are kept would show. The
largest requests come in the first third, and heaps and shared memory keep their room."""

LEAST_BLOCKS = 12
"""Fewer are those of a server that fills its caches."""

REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "UNIMPLEMENTED", "CANCELLED"}
"""Statuses with which a server of ours refuses."""

OTHERS = {
    "INTERNAL": ("Unable to parse request",),
}
"""Further statuses, each with the words of gRPC's own that it is allowed with."""

TOO_LONG = "received metadata size exceeds"
"""What gRPC says in place of words that are too long for it."""


@dataclass
class Outcome:
    """What became of one request."""

    number: int
    attack: Attack
    status: str
    words: str = ""
    answer: bytes = b""
    seconds: float = 0.0


@dataclass
class Report:
    """What was found.

    Attributes
    ----------
    faults : list of str
        Each with the seed and number that repeat it.
    outcomes : dict of str to Counter
        Kind of request → how often it ended with which status.
    """

    seed: int
    faults: list[str] = field(default_factory=list)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    memory: list[dict[str, float]] = field(default_factory=list)
    longest_record: int = 0
    log_bytes: int = 0
    longest_words: int = 0
    slowest_s: float = 0.0
    requests: int = 0
    decoders_replaced: int = 0
    seconds: float = 0.0

    def growth_mib(self) -> dict[str, float]:
        """Least of the last third of the blocks over the least of the second, in MiB."""
        third = max(1, len(self.memory) // 3)
        parts = self.memory[-2 * third : -third] or self.memory, self.memory[-third:]
        least = [{name: min(sample[name] for sample in part) for name in part[0]} for part in parts]
        return {name: round(value - least[0][name], 1) for name, value in least[1].items()}

    def facts(self) -> dict[str, Any]:
        """For the record."""
        return {
            "what": "hostile requests to a served release, and what became of them",
            "machine": describe_machine(),
            "seed": self.seed,
            "requests": self.requests,
            "seconds": round(self.seconds, 1),
            "faults": self.faults,
            "outcomes": {kind: dict(sorted(found.items())) for kind, found in sorted(self.outcomes.items())},
            "slowest_answer_s": round(self.slowest_s, 2),
            "longest_words_bytes": self.longest_words,
            "decoders_replaced": self.decoders_replaced,
            "log": {
                "longest_record_bytes": self.longest_record,
                "bytes_a_request": round(self.log_bytes / max(1, self.requests)),
            },
            "memory_mib": {
                "samples": self.memory,
                "growth_of_least_last_third_over_second": self.growth_mib(),
            },
        }


def run(
    server: TritonServer, log: Log, ground: Ground, *, seed: int, count: int, first: int = 0, block: int = BLOCK
) -> Report:
    """Send requests ``first`` to ``first + count`` of a seed, a block at a time, and look at the server after each."""
    report, began = Report(seed), time.monotonic()
    with Watch([ground.trap.outside, ground.trap.outside.parent / f"{target.ROOT}-too"]) as watch:
        expected = reference(server.address, ground)
        alive, readers = target.processes(server), target.decoders(server)
        secrets = target.folders_of(server)
        for start in range(first, first + count, block):
            numbers = range(start, min(start + block, first + count))
            at, restarts = len(log), server.restarts
            outcomes = asyncio.run(_send(server.address, [(n, grammar.attack(ground, seed, n)) for n in numbers]))
            where = f"seed {seed}, numbers {numbers.start} to {numbers.stop - 1}"
            for outcome in outcomes:
                _note(report, outcome)
                for wrong in faults_of(outcome, ground, secrets):
                    report.faults.append(f"seed {seed}, number {outcome.number}: {outcome.attack.kind}: {wrong}")
            try:
                found = reference(server.address, ground)
            except grpc.RpcError as error:
                report.faults.append(f"{where}: a good request fails after them: {error.code()}")
                found = _wait_for(server.address, ground)
            if found != expected:
                report.faults.append(f"{where}: a good request is answered otherwise after them")
            now = target.processes(server) if server.pid else {}
            if now != alive or server.restarts != restarts:
                gone = ", ".join(name for pid, name in alive.items() if pid not in now)
                report.faults.append(f"{where}: processes died: {gone} (restarts: {server.restarts - restarts})")
                _wait_for(server.address, ground)
                now = target.processes(server)
            reading = target.decoders(server)
            report.decoders_replaced += len(set(reading) - set(readers))
            alive, readers = now, reading
            _look_at_log(report, log, at, where)
            report.memory.append(memory(server))
    report.faults += [f"a file outside the roots was opened: {name}" for name in sorted(set(watch.opened))]
    report.seconds = time.monotonic() - began
    if report.log_bytes > MEAN_LOG_BYTES * report.requests:
        report.faults.append(f"{report.log_bytes / report.requests:.0f} bytes of log a request")
    for name, grown in report.growth_mib().items():
        if grown > GROWTH_MIB and len(report.memory) >= LEAST_BLOCKS:
            report.faults.append(f"memory of {name} grew by {grown} MiB from the second third to the last")
    return report


def reference_message(ground: Ground) -> bytes:
    """A good request of two rows: with one, ONNX Runtime multiplies by another kernel than beside others."""
    centers = np.array([[700, 900], [720, 900]], np.int32)
    tensors = grammar.spots(ground, np.random.default_rng(0))
    tensors[1].values = centers
    return bytes(grammar.request("m2ost_slide", tensors).SerializeToString())


def reference(address: str, ground: Ground) -> dict[str, bytes]:
    """What the good request is answered with: the bytes of each output, which come in any order."""
    with grpc.insecure_channel(address, channel_options(address)) as channel:
        call = channel.unary_unary(grammar.SERVICE + grammar.INFER)
        return outputs_of(call(reference_message(ground), timeout=DEADLINE_S))


def outputs_of(data: bytes) -> dict[str, bytes]:
    """The bytes of each output of an answer."""
    answer = pb.ModelInferResponse.FromString(data)
    raw = answer.raw_output_contents
    return {tensor.name: value for tensor, value in zip(answer.outputs, raw, strict=True)}


def memory(server: TritonServer) -> dict[str, float]:
    """MiB of the server's processes that are their own, by all of them with what they share, and of /dev/shm."""
    main = psutil.Process(server.pid)
    tree = [main, *main.children(recursive=True)]
    return {
        "anonymous": round(anonymous_mib(main, descendants=True), 1),
        "pss": round(sum(process.memory_full_info().pss for process in tree) / (1 << 20), 1),
        "shared": round(shared_mib(server), 1),
    }


def faults_of(outcome: Outcome, ground: Ground, secrets: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with an answer."""
    attack = outcome.attack
    if outcome.status == "DEADLINE_EXCEEDED":
        yield f"no answer within {DEADLINE_S:g} s"
        return
    told = next((path for path in secrets if path in outcome.words), None)
    if told:
        yield f"tells a path of the machine, {told}: {outcome.words[:300]!r}"
    if attack.by_triton and (TOO_LONG in outcome.words or outcome.status != "OK"):
        return
    if len(outcome.words) > LONGEST_WORDS:
        yield f"{len(outcome.words)} characters of words"
    if outcome.status == "OK":
        if attack.must_fail:
            yield "was answered"
        elif attack.method == grammar.INFER:
            yield from _faults_of_answer(attack, outcome.answer, ground)
    elif outcome.status not in REFUSALS:
        if not any(words in outcome.words for words in OTHERS.get(outcome.status, ())):
            yield f"{outcome.status}: {outcome.words[:300]!r}"
    elif outcome.status == "CANCELLED" and attack.cancel_after_s is None:
        yield "cancelled by the server"


def _faults_of_answer(attack: Attack, data: bytes, ground: Ground) -> Iterator[str]:
    answer = pb.ModelInferResponse.FromString(data)
    raw = outputs_of(data)
    if answer.model_name != "m2ost_slide" or not {"STATUS", "EXPRESSION"} <= set(raw):
        return
    status = np.frombuffer(raw["STATUS"], np.int32)
    expression = np.frombuffer(raw["EXPRESSION"], np.float32).reshape(-1, ground.genes)
    if len(status) != len(expression) or (np.isfinite(expression).all(axis=1) != (status == 0)).any():
        yield "its values do not fit its statuses"
    rows = grammar.scored_rows(attack.message)
    if rows is None or len(rows) != len(status):
        yield f"answered with {len(status)} rows, asked for {'nothing that can be read' if rows is None else len(rows)}"
        return
    for (name, (x, y), scale), code in zip(rows, status, strict=True):
        inside = 0 <= x < ground.slide.size[0] and 0 <= y < ground.slide.size[1] and SCALE_MIN <= scale <= SCALE_MAX
        if (code == 0) != (name == ground.slide.name and inside):
            yield f"status {code} of {name[:80]!r} at {x}, {y}, scale {scale}"
            return


def _note(report: Report, outcome: Outcome) -> None:
    report.requests += 1
    report.outcomes.setdefault(outcome.attack.kind, Counter())[outcome.status] += 1
    report.longest_words = max(report.longest_words, len(outcome.words.encode(errors="replace")))
    report.slowest_s = max(report.slowest_s, outcome.seconds)


def _look_at_log(report: Report, log: Log, at: int, where: str) -> None:
    sizes = log.sizes(at)
    report.log_bytes += sum(sizes)
    longest = max(sizes, default=0)
    report.longest_record = max(report.longest_record, longest)
    if longest > LONGEST_RECORD_BYTES:
        report.faults.append(f"{where}: a record of {longest} bytes in the log")
    report.faults += [f"{where}: a traceback in the log: {words}" for words in log.frames(at)[:1]]


def _wait_for(address: str, ground: Ground) -> dict[str, bytes]:
    deadline = time.monotonic() + RESTED_S
    while True:
        try:
            return reference(address, ground)
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


async def _send(address: str, attacks: list[tuple[int, Attack]]) -> list[Outcome]:
    """Send requests, some at a time; what became of each."""
    room = asyncio.Semaphore(IN_FLIGHT)
    async with grpc.aio.insecure_channel(address, channel_options(address)) as channel:

        async def send(number: int, attack: Attack) -> Outcome:
            async with room:
                return await _send_one(channel, number, attack)

        return await asyncio.gather(*(send(number, attack) for number, attack in attacks))


async def _send_one(channel: grpc.aio.Channel, number: int, attack: Attack) -> Outcome:
    began = time.monotonic()
    path, options = grammar.SERVICE + attack.method, {"metadata": attack.metadata, "timeout": DEADLINE_S}
    if attack.method == grammar.STREAM:
        call = channel.stream_stream(path)(iter([attack.message]), **options)
        outcome = asyncio.ensure_future(_read_stream(call))
    else:
        call = channel.unary_unary(path)(attack.message, **options)
        outcome = asyncio.ensure_future(_read(call))
    if attack.cancel_after_s is not None:
        await asyncio.wait([outcome], timeout=attack.cancel_after_s)
        call.cancel()
    status, words, answer = await outcome
    return Outcome(number, attack, status, words, answer, time.monotonic() - began)


async def _read(call: Any) -> tuple[str, str, bytes]:
    try:
        return "OK", "", await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, str(error.details() or ""), b""
    except asyncio.CancelledError:
        return "CANCELLED", "", b""


async def _read_stream(call: Any) -> tuple[str, str, bytes]:
    try:
        answers = [pb.ModelStreamInferResponse.FromString(data) async for data in call]
    except grpc.aio.AioRpcError as error:
        return error.code().name, str(error.details() or ""), b""
    words = next((answer.error_message for answer in answers if answer.error_message), "")
    return ("INVALID_ARGUMENT" if words or not answers else "OK"), words, b""


def attack_release(release: Path, slide: Path, folder: Path, *, seed: int, count: int, first: int = 0) -> Report:
    """Serve a release, attack it, and stop it again; ``folder`` is for the files of the trap."""
    trap = target.make_trap(folder, slide)
    with target.served(release, target.own_roots(slide, trap)) as (server, log):
        return run(server, log, ground_of(server, slide, trap), seed=seed, count=count, first=first)


def ground_of(server: TritonServer, slide: Path, trap: target.Trap) -> Ground:
    """What requests to a server are made for, with the slide ``wsi/…``."""
    size = target.open_slide(slide).size
    return Ground(target.Slide(f"wsi/{slide.name}", size), trap, len(server.release.engine.genes))
