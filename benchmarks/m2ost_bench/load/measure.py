"""Find what a deployment can serve, where queues begin, and what is left of it under several times as much.

Locust asks, a master with workers. What it reports is held against what the workers saw themselves, what the server
counted, and what the network gives for the same spots without a server. Figures fail nothing; counts do.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import MODEL_ENGINE, MODEL_SLIDE, QUEUE_FULL, Manifest
from m2ost_loadtests.gate.measure import Target
from m2ost_loadtests.load.distributed import run_distributed
from m2ost_loadtests.load.load_report import LoadReport
from m2ost_loadtests.load.workload import Load
from m2ost_loadtests.machine import describe_machine
from m2ost_loadtests.rounds import interleave
from m2ost_loadtests.runners import bare_runner
from m2ost_preprocess.network import read_url

from .testimony import FOLDER, Seen, read_testimony

STEPS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5)
"""Offered loads over capacity, until one is past the knee."""

OVERLOAD = 4.0
"""Offered load over capacity at last."""

TOLERANCE = 1e-4
"""By how much an answer may differ from a direct prediction: batches of other sizes round differently."""

BATCH_ROWS = 32
_WITNESS = Path(__file__).with_name("witness.py")
_SETTLE_S, _SETTLE_READS = 0.2, 50
_COUNTER = re.compile(r"^(?:m2ost_guarded_rows_total|m2ost_requests_refused_total)\{([^}]*)\} (\S+)$", re.MULTILINE)
_REASON = re.compile(r'\breason="([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What is asked for.

    Parameters
    ----------
    release : Path
        The release that is served; its network gives what the answers are held against.
    slide : Path
        The slide file on this machine.
    target : Target
        The server.
    seconds : float
        Length of each load.
    users : int
        Of the closed load, which has so many requests under way; of open loads, over which arrivals are spread.
    spots : int
        Spots a request.
    workers : int
        Processes of Locust that ask.
    rounds : int
        How often capacity and overload are measured, in turn.
    steps : sequence of float
        Offered loads over capacity, in rising order.
    processor_s : callable, optional
        Processor time of the server so far, in seconds: what other programs on the machine hardly change.
    """

    release: Path
    slide: Path
    target: Target
    seconds: float = 20.0
    users: int = 16
    spots: int = 8
    workers: int = 2
    rounds: int = 3
    steps: Sequence[float] = STEPS
    processor_s: Callable[[], float] | None = None


def measure(options: LoadOptions, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Load the server: closed, open in steps to the knee, and then in turn closed and far more than it can serve.

    Raises
    ------
    TargetError
        If the server cannot be measured.
    LoadTestError
        If Locust fails.

    Returns
    -------
    dict
        ``capacity_spots_per_s``; ``steps``, each as :func:`step_of` gives it; ``knee_spots_per_s``, the highest offered
        load at which nothing was refused and p95 was no longer than in the closed load, or None; ``overload`` with
        ``goodput_over_capacity``, answers that came while the load was offered over capacity in the same round, and the
        same of all answers by the server's processor time, where that is told; and
        ``faults``, which is empty where everything that can be counted adds up.
    """
    direct = Direct(options.release, options.slide)
    say("closed load, to warm up")
    _load(replace(options, seconds=min(5.0, options.seconds)), None)
    say(f"closed load: {options.users} users, {options.spots} spots a request, {options.seconds:g} s")
    closed = step_of(options, None, direct)
    capacity = closed["answered_spots_per_s"]
    steps, knee = [closed], None
    for share in options.steps:
        say(f"open load: {share:g} of capacity")
        steps.append(step_of(options, share * capacity, direct))
        if _is_past(steps[-1], closed):
            break
        knee = steps[-1]["offered_spots_per_s"]
    say(f"in turn: capacity, and {OVERLOAD:g} times the most that was served so far as open load")
    most = max(step["answered_spots_per_s"] for step in steps)

    def again() -> dict[str, Any]:
        nonlocal most
        step = step_of(options, None, direct)
        most = max(most, step["answered_spots_per_s"])
        return step

    loads = {"capacity": again, "overload": lambda: step_of(options, OVERLOAD * most, direct)}
    taken = interleave(loads, options.rounds)
    rates = taken.map(lambda step: float(step["answered_spots_per_s"]))
    by_processor = {}
    if options.processor_s is not None:
        work = taken.map(lambda step: float(step["spots_per_processor_s"]))
        by_processor = {"goodput_over_capacity_by_processor_time": work.ratio("overload", "capacity")}
    all_steps = [*steps, *(step for rounds in taken.found.values() for step in rounds)]
    manifest = Manifest.read(options.release)
    return {
        "what": "a deployment under load, and under more than it can serve",
        "machine": describe_machine(),
        "slide": options.slide.name,
        "release": {
            "name": manifest.served_name,
            "precision": manifest.engine.precision,
            "genes": len(manifest.engine.genes),
            "sha256": manifest.engine.release_sha256,
        },
        "spots_a_request": options.spots,
        "users": options.users,
        "workers": options.workers,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "capacity_spots_per_s": capacity,
        "steps": steps,
        "knee_spots_per_s": knee,
        "overload": {
            "times": OVERLOAD,
            "spots_per_s": rates.spreads(),
            "goodput_over_capacity": rates.ratio("overload", "capacity"),
            **by_processor,
            "steps": taken.found,
        },
        "faults": list(dict.fromkeys(fault for step in all_steps for fault in step["faults"])),
    }


class Direct:
    """What the network gives for spots of a slide without a server."""

    def __init__(self, release: Path, slide: Path) -> None:
        self._release, self._slide = release, slide

    def difference(self, centers: Any, expression: Any) -> float:
        """By how much values differ from those at most."""
        spots, rows = np.unique(centers, axis=0, return_inverse=True)
        expected = bare_runner(self._release, self._slide, spots, BATCH_ROWS)()
        return float(np.abs(expected[rows.reshape(-1)] - expression).max())


def step_of(options: LoadOptions, offered: float | None, direct: Direct) -> dict[str, Any]:
    """One load, and whether what is counted of it adds up.

    Parameters
    ----------
    options : LoadOptions
    offered : float or None
        Spots/s of an open load with random arrivals; None for a closed one.
    direct : Direct
    """
    before = server_counts(options.target.metrics_url)
    began_s = options.processor_s() if options.processor_s else 0.0
    report, seen = _load(options, offered)
    by_processor = {}
    if options.processor_s is not None:
        by_processor = {"spots_per_processor_s": report.all["spots"] / max(options.processor_s() - began_s, 1e-9)}
    after = server_counts(options.target.metrics_url)
    server = {name: value - before.get(name, 0.0) for name, value in after.items()}
    differences = [direct.difference(one.centers, one.expression) for one in seen if one.centers is not None]
    refused = by_reason(report.all["failures"])
    engine = report.models.get(MODEL_ENGINE)
    return {
        "load": "closed" if offered is None else "open",
        "seconds": report.offered["seconds"],
        "offered_spots_per_s": None if offered is None else report.offered["requests_per_s"] * options.spots,
        "answered_spots_per_s": report.offered["answered_spots_per_s"],
        "requests": report.offered["requests"],
        "answered": report.all["requests"],
        "refused": refused,
        "unanswered": report.all["unanswered_at_the_end"],
        "latency_s": report.all["latency_s"],
        "send_lag_s": report.all["send_lag_s"],
        "rows_a_batch": engine["rows_per_execution"] if engine else None,
        **by_processor,
        "compared_spots": sum(len(one.centers) for one in seen if one.centers is not None),
        "max_abs_diff": max(differences, default=None),
        "answered_by_worker": [one.answered for one in seen],
        "faults": faults_of(report, seen, server, max(differences, default=0.0), options.workers),
    }


def _load(options: LoadOptions, offered: float | None) -> tuple[LoadReport, list[Seen]]:
    load = Load(spots=options.spots)
    if offered is not None:
        rate = offered / options.spots / options.users
        load = replace(load, arrival_rate=rate, poisson=True)
    target = options.target
    with tempfile.TemporaryDirectory(prefix="m2ost-witness-") as folder:
        report = run_distributed(
            target.address,
            [target.slide],
            users=options.users,
            seconds=options.seconds,
            load=load,
            workers=options.workers,
            metrics_url=target.metrics_url,
            credentials=target.credentials,
            locustfile=_WITNESS,
            variables={FOLDER: folder},
        )
        return report, read_testimony(Path(folder))


def _is_past(step: Mapping[str, Any], closed: Mapping[str, Any]) -> bool:
    """Whether a queue grew: requests were refused, or waited longer than where a closed load keeps the server full."""
    latency = step["latency_s"]
    return bool(step["refused"]) or latency is None or latency["p95"] > closed["latency_s"]["p95"]


def by_reason(failures: Mapping[str, int]) -> dict[str, int]:
    """Failed requests by reason; ``queue_full``, as the server counts it, whatever numbers are in the words."""
    counts: Counter[str] = Counter()
    for words, count in failures.items():
        counts["queue_full" if words.startswith("UNAVAILABLE: ") and QUEUE_FULL in words else words] += count
    return dict(counts)


def faults_of(
    report: LoadReport, seen: Sequence[Seen], server: Mapping[str, float], difference: float, workers: int
) -> list[str]:
    """What does not add up.

    Parameters
    ----------
    report : LoadReport
        The master's.
    seen : sequence of Seen
        What each worker saw.
    server : mapping of str to float
        How much each of :func:`server_counts` grew; empty where the metrics are not open.
    difference : float
        Of sampled answers from direct predictions.
    workers : int
        How many there were.
    """
    figures = report.all
    failures, refused = Counter(figures["failures"]), by_reason(figures["failures"])
    witnessed = sum((Counter(one.failures) for one in seen), Counter[str]())
    answered, spots = sum(one.answered for one in seen), sum(one.spots for one in seen)
    ended = figures["requests"] + figures["failed"]
    pairs = {
        "workers that took part": (workers, sum(bool(one.answered or one.failures) for one in seen)),
        "requests that were due, and that were answered or refused": (report.offered["requests"], ended),
        "requests without an answer": (0, figures["unanswered_at_the_end"]),
        "answers that the master and its workers count": (figures["requests"], answered),
        "spots that the master and its workers count": (figures["spots"], spots),
        "refusals that the master and its workers count": (dict(failures), dict(witnessed)),
        "spots without a value": ({}, figures["spots_without_value"]),
        "failures that are no refusal": ({}, {words: n for words, n in refused.items() if words != "queue_full"}),
    }
    if server:
        told = {name: int(count) for name, count in server.items() if count and name != "spots"}
        pairs["spots that the master and the server count"] = (figures["spots"], int(server["spots"]))
        pairs["refusals that the master and the server count"] = (refused, told)
    if MODEL_SLIDE in report.models:
        pairs["answers that the master and Triton count"] = (
            figures["requests"],
            report.models[MODEL_SLIDE]["requests"],
        )
    faults = [f"{what}: {one} and {other}" for what, (one, other) in pairs.items() if one != other]
    if not difference <= TOLERANCE:
        faults.append(f"an answer differs by {difference:.3g} from a direct prediction; at most {TOLERANCE:g} may be")
    return faults


def server_counts(url: str) -> dict[str, float]:
    """Spots with a value that have left the server (``spots``) and refused requests by reason, once they stand still.

    Empty without an address.
    """
    if not url:
        return {}
    latest: dict[str, float] = {}
    for _ in range(_SETTLE_READS):
        before, latest = latest, _read_counts(url)
        if latest == before:
            break
        time.sleep(_SETTLE_S)
    return latest


def _read_counts(url: str) -> dict[str, float]:
    counts = {"spots": 0.0}
    for labels, value in _COUNTER.findall(read_url(url, 20.0)):
        reason = _REASON.search(labels)
        name = reason[1] if reason else "spots"
        counts[name] = counts.get(name, 0.0) + float(value)
    return counts
