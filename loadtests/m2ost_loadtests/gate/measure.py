"""The gate against getting slower: measures a release, served, in one run. :mod:`verdicts` decides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2ost_client.credentials import Credentials
from m2ost_client.server.command import ServerOptions
from m2ost_client.server.supervisor import TritonServer
from m2ost_client.stream import SpotStream, StreamOptions
from m2ost_contract import MODEL_ENGINE, Manifest
from m2ost_preprocess.slides import SlideRoots

from ..errors import TargetError, ThresholdsError
from ..load.closed_load import run_closed_load
from ..load.load_report import LoadReport
from ..load.workload import Load
from ..machine import fingerprint
from ..rounds import Spread
from ..runners import bare_runner, score_in_turn, served_runner, spots_to_score
from .thresholds import Thresholds
from .verdicts import Measurement, check_measurable

EMBEDDED_ROOT = "embedded"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A running server.

    Parameters
    ----------
    address : str
        ``host:port`` of its gRPC service.
    slide : str
        The slide's name there: ``root/relative/path``.
    metrics_url : str
        Its metrics; empty where they are not open.
    credentials : Credentials
        What it is shown, and whom its clients trust.
    """

    address: str
    slide: str
    metrics_url: str = ""
    credentials: Credentials = field(default_factory=Credentials)


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """What the gate measures.

    Parameters
    ----------
    release : Path
        The release that is served; its ONNX graph is what bare inference runs.
    slide : Path
        A slide file on this machine.
    target : Target or None
        A running server; by default one is started for the run.
    pitch_um : float
        Pitch of the grid of spots in µm.
    mpp : float or None
        µm/px of the slide, in place of what the file says.
    rounds : int
        Rounds of served and bare inference, in turn.
    users : int
        Users of the closed load.
    spots : int
        Spots a request of theirs.
    load_s : float
        Length of the closed load in seconds.

    Raises
    ------
    ValueError
        If a value is out of range; names the option.
    """

    release: Path
    slide: Path
    target: Target | None = None
    pitch_um: float = 100.0
    mpp: float | None = None
    rounds: int = 5
    users: int = 8
    spots: int = 8
    load_s: float = 15.0

    def __post_init__(self) -> None:
        positive = {"--rounds": self.rounds, "--users": self.users, "--load-s": self.load_s}
        for name, value in positive.items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        self.load()

    def load(self) -> Load:
        """What the users of the closed load ask for."""
        return Load(spots=self.spots, pitch_um=self.pitch_um, mpp=self.mpp)


def read_speedups(path: Path) -> dict[str, Spread]:
    """Speed-ups over iStar by variant, from a JSON file: ``{"speedups": {VARIANT: {"median", "min", "max"}}}``.

    Raises
    ------
    ThresholdsError
        If it is not there or holds none.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))["speedups"]
        return {
            str(name): Spread(median=float(s["median"]), min=float(s["min"]), max=float(s["max"]))
            for name, s in raw.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ThresholdsError(
            f"{path}: holds no speed-ups over iStar ({error!r}); give the JSON that `m2ost bench istar` writes"
        ) from error


def measure(
    options: GateOptions,
    thresholds: Thresholds,
    *,
    speedups: Mapping[str, Spread] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Measurement:
    """Serve, load and time a release in one run.

    Parameters
    ----------
    options : GateOptions
    thresholds : Thresholds
        Checked first: what they ask for must be measurable.
    speedups : mapping of str to Spread, optional
        Speed-ups over iStar by variant, measured elsewhere.
    say : callable
        Told what is going on.

    Raises
    ------
    ThresholdsError
        If the thresholds ask for what is not measured.
    TargetError
        If the server cannot be measured: away, a model not loaded, the slide unknown, no spots, another release.
    """
    manifest = Manifest.read(options.release)
    target = options.target
    check_measurable(thresholds, speedups or {}, has_metrics=target is None or bool(target.metrics_url))
    centers = spots_to_score(options.slide, options.pitch_um, mpp=options.mpp)
    with served_target(options.target, options.release, options.slide) as target:
        say(f"closed load: {options.users} users, {options.spots} spots a request, {options.load_s:g} s")
        load = run_closed_load(
            target.address,
            [target.slide],
            users=options.users,
            seconds=options.load_s,
            load=options.load(),
            metrics_url=target.metrics_url,
            credentials=target.credentials,
        )
        _check_release(target, manifest)
        say(f"served against bare inference: {len(centers)} spots, {options.rounds} rounds")
        stream = StreamOptions(credentials=target.credentials)
        runners = {
            "bare": bare_runner(options.release, options.slide, centers, stream.batch_rows),
            "served": served_runner(target.address, target.slide, centers, stream),
        }
        timed = score_in_turn(runners, len(centers), options.rounds)
    return _measurement(options, manifest, load, timed, speedups or {})


@contextmanager
def served_target(target: Target | None, release: Path, slide: Path) -> Iterator[Target]:
    """The server that is given; else one that serves a release and a slide for as long as the block lasts."""
    if target is not None:
        yield target
        return
    slide = slide.resolve()
    roots = SlideRoots({EMBEDDED_ROOT: slide.parent})
    with TritonServer(ServerOptions(release=release, roots=roots)) as server:
        yield Target(address=server.address, slide=f"{EMBEDDED_ROOT}/{slide.name}", metrics_url=server.metrics_url)


def _check_release(target: Target, manifest: Manifest) -> None:
    async def served() -> str:
        async with SpotStream(target.address, StreamOptions(credentials=target.credentials)) as stream:
            return stream.info.release_sha256

    found, expected = asyncio.run(served()), manifest.engine.release_sha256
    if found != expected:
        raise TargetError(
            f"{target.address}: serves release {found[:12]}, bare inference would run {expected[:12]}; give the "
            "release that is served"
        )


def _measurement(
    options: GateOptions, manifest: Manifest, load: LoadReport, timed: dict[str, Any], speedups: Mapping[str, Spread]
) -> Measurement:
    latency = load.all["latency_s"]
    engine = load.models.get(MODEL_ENGINE)
    return Measurement(
        served_over_bare=timed["ratios"]["served/bare"],
        requests_per_batch=engine["requests_per_execution"] if engine else None,
        rows_per_batch=engine["rows_per_execution"] if engine else None,
        bytes_per_spot=load.all["bytes_per_spot"],
        p95_over_p50=latency["p95"] / latency["p50"] if latency else None,
        failures=load.all["failures"],
        rates={
            "bare": timed["spots_per_s"]["bare"]["median"],
            "served": timed["spots_per_s"]["served"]["median"],
            "closed load": load.all["spots_per_s"],
        },
        latencies={f"closed load, {p}": latency[p] * 1e3 for p in ("p50", "p95")} if latency else {},
        workload={
            "slide": options.slide.name,
            "spots": timed["spots"],
            "precision": manifest.engine.precision,
            "users": options.users,
            "spots a request": options.spots,
            "architecture": manifest.architecture,
        },
        fingerprint=fingerprint(load.server),
        speedups=dict(speedups),
    )
