"""What the users of one Locust process share: the connection, the slides and their spots, the classes of traffic."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import gevent.event
import m2ost_contract as contract
import numpy as np
from locust.env import Environment
from m2ost_client.credentials import Credentials
from m2ost_contract import EngineInfo, ModelNames

from ..errors import TargetError
from .channel import Channel
from .load_statistics import LoadStatistics
from .requests import MODEL_ISTAR
from .workload import Draw, Load, SlideSpots, traffic_class

_EPOCH = time.time() - time.perf_counter()


def now() -> float:
    """Seconds since the epoch, on a clock that never jumps."""
    return _EPOCH + time.perf_counter()


@dataclass
class Session:
    """A prepared load.

    Parameters
    ----------
    channel : Channel
    load : Load
    slides : sequence of SlideSpots
        The most popular first; empty where no user asks by slide.
    engine : EngineInfo or None
        What is served; None where no user asks M2OST.
    served : dict of str to str
        Model, as a release that is served alone calls it → its name on this server.
    priority_levels : dict of str to int
        Model, as it is served → levels of its queue.
    worker : int
        Index of this process among the workers.
    """

    channel: Channel
    load: Load
    slides: Sequence[SlideSpots]
    engine: EngineInfo | None
    served: dict[str, str]
    priority_levels: dict[str, int]
    worker: int = 0
    started_users: int = 0
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def enter(self) -> tuple[str, Draw]:
        """A new user's class of traffic and its requests."""
        ordinal = self.started_users
        self.started_users += 1
        seed = (self.load.seed, self.worker, ordinal)
        return (
            traffic_class(ordinal, self.load.archive_share),
            Draw(self.slides, exponent=self.load.zipf_exponent, seed=seed),
        )

    def views(self, rows: int) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
        """Pixels for ``m2ost_patches``: seeded noise, since neither transport nor network is faster on tissue."""
        assert self.engine is not None
        random = np.random.default_rng(self.load.seed)
        geometry = self.engine.views
        return {name: random.integers(0, 256, (rows, *geometry.shape), np.uint8) for name in geometry.names}


def prepare(
    address: str,
    slides: Sequence[str],
    models: Iterable[str],
    load: Load,
    credentials: Credentials | None = None,
    release: str | None = None,
) -> Session:
    """Ask a server all that a load needs; a client with only an address needs nothing else.

    Parameters
    ----------
    address : str
        ``host:port`` of the gRPC service.
    slides : sequence of str
        ``root/relative/path``, the most popular first.
    models : iterable of str
        The models that will be asked, as a release that is served alone calls them.
    load : Load
    credentials : Credentials, optional
        What the server is shown, and whom this client trusts.
    release : str, optional
        Name of the release, where the server has several.

    Raises
    ------
    TargetError
        If the server is away or refuses the credentials, or they cannot be used; if it does not serve a
        model, or does not know a slide, or a slide has no spots.
    """
    models = sorted(set(models))
    channel = Channel(address, credentials)
    try:
        asks_release = bool(set(models) - {MODEL_ISTAR})
        names = channel.names(release) if asks_release else ModelNames()
        served = {model: names.of(model) for model in models}
        for model in served.values():
            channel.check_served(model, names)
        by_slide = [m for m in models if m != contract.MODEL_PATCHES]
        if by_slide and not slides:
            raise TargetError(f"{by_slide[0]} is asked by slide: name at least one with --slide root/relative/path")
        return Session(
            channel=channel,
            load=load,
            slides=[channel.spots_of(s, pitch_um=load.pitch_um, mpp=load.mpp) for s in slides if by_slide],
            engine=channel.engine(names) if asks_release else None,
            served=served,
            priority_levels={model: channel.priority_levels(model) for model in served.values()},
        )
    except BaseException:
        channel.close()
        raise


@dataclass
class Process:
    """What belongs to one Locust process, test after test.

    Parameters
    ----------
    statistics : LoadStatistics
    session : Session or None
        Of the running test; None before the first, and on a master.
    error : TargetError or None
        Why there is none.
    go : Event
        Set once the users of all processes may begin.
    """

    statistics: LoadStatistics = field(default_factory=LoadStatistics)
    session: Session | None = None
    error: Exception | None = None
    go: Any = field(default_factory=gevent.event.Event)


_processes: WeakKeyDictionary[Environment, Process] = WeakKeyDictionary()


def process_of(environment: Environment) -> Process:
    """What belongs to this process."""
    return _processes.setdefault(environment, Process())
