"""Units of work on a Ray cluster: Ray places them, keeps them off full servers, and gives them out anew.

A unit is a task that needs one ``triton``, a custom resource of which nodes offer as many as servers are to bear at a
time. A task reads coordinates and returns values; state and results are the driver's alone. So a task that dies with
its worker leaves nothing behind, and Ray runs it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from m2ost_contract import EngineInfo, install_command
from m2ost_preprocess.decoder import Decoder, SlideInfo
from m2ost_preprocess.errors import SlideError

from ..errors import AccessRefused, InputError, ReleaseChanged, ServerUnavailable
from ..tracing import context_headers, joined
from .access import Sent, existing
from .options import Servers
from .pool import Drained, Pool
from .score import ByName, BySending, Scorer, SpotRange, score_range
from .state import Part

RESOURCE = "triton"
"""Ray's custom resource: a task needs one of it."""

RETRIES = 3
"""How often Ray runs a task again that died with its worker: a slide may be what kills it."""

KNOCK_S = 5.0
"""How long a cluster's address may take to answer, in seconds."""

AHEAD = 2
"""Tasks that Ray is given, for every one that can run: the next is there when one ends, and a run can be drained."""


@dataclass(frozen=True)
class Scored:
    """What a task returns: its spots' values, its worker, requests sent again, and (requests, spots) by address."""

    part: Part
    worker: tuple[str, int]
    retries: int
    by_address: dict[str, tuple[int, int]]


class _Seat:
    """What a worker process keeps from one task to the next: connections, and the process that reads slides."""

    def __init__(self, servers: Servers) -> None:
        _check_credentials(servers)
        turn = os.getpid() % len(servers.addresses)
        addresses = (*servers.addresses[turn:], *servers.addresses[:turn])
        self.pool = Pool(addresses, servers.endpoints, retry_for_s=servers.retry_for_s)
        self.loop = asyncio.Runner()
        self.loop.run(self.pool.__aenter__())
        self.decoder = Decoder(self.pool.info.views)
        self.scorer: Scorer = BySending(self.pool, self.decoder) if servers.send_pixels else ByName(self.pool)

    def counts(self) -> dict[str, tuple[int, int]]:
        return {e.address: (e.requests, e.spots) for e in self.pool.endpoints}


def _check_credentials(servers: Servers) -> None:
    """Refuse to ask servers from a worker that lacks the run's credentials: no slide of it could be scored here."""
    try:
        for address in servers.addresses:
            servers.credentials.open(address)
    except InputError as error:
        raise AccessRefused(f"on the worker {os.uname().nodename}: {error}") from error


_seat = lru_cache(maxsize=1)(_Seat)


def score_unit(
    servers: Servers, served: EngineInfo, unit: SpotRange, batch_rows: int, context: dict[str, str] | None = None
) -> Scored:
    """Score one unit; the body of a task.

    Parameters
    ----------
    servers : Servers
    served : EngineInfo
        What the archive is scored with.
    unit : SpotRange
    batch_rows : int
        Spots a request.
    context : dict, optional
        What requests carry so that servers' spans join the run's; a worker notes none itself.

    Raises
    ------
    AccessRefused
        If the run's credentials cannot be used here, or the servers refuse them.
    ReleaseChanged
        If the servers do not serve the release of the archive, or on another engine. Otherwise as :func:`score_range`.
    """
    try:
        seat = _seat(servers)
        with joined(context):
            task = _score_unit(seat, servers.window, served, unit, batch_rows)
            return seat.loop.run(task, context=copy_context())
    except (ServerUnavailable, ReleaseChanged):
        _seat.cache_clear()
        raise


async def _score_unit(seat: _Seat, window: int, served: EngineInfo, unit: SpotRange, batch_rows: int) -> Scored:
    pool = seat.pool
    if pool.info.identity != served.identity:
        raise ReleaseChanged(
            f"the servers serve {pool.info.in_words()}, the archive is scored with {served.in_words()}; "
            "roll it back, or run again with --rescore-changed"
        )
    retries, before = pool.retries, seat.counts()
    part = await score_range(seat.scorer, unit, batch_rows=batch_rows, concurrency=window)
    await pool.check_release()
    by_address = {a: (n - before[a][0], spots - before[a][1]) for a, (n, spots) in seat.counts().items()}
    return Scored(part, (os.uname().nodename, os.getpid()), pool.retries - retries, by_address)


def describe_slide(servers: Servers, path: str, pitch_um: float | None, mpp: float | None) -> SlideInfo:
    """Describe a slide that workers read; the body of a task."""
    return _seat(servers).decoder.describe(Path(path), pitch_um=pitch_um, mpp=mpp)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to.

    Parameters
    ----------
    address : str
    places : int
        Tasks that its nodes' ``triton`` lets run at a time.
    """

    address: str
    places: int


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Connect to a Ray cluster.

    Parameters
    ----------
    address : str
        ``host:port``, ``ray://host:port`` or ``auto``.

    Raises
    ------
    InputError
        If Ray is not installed, no cluster answers, or none of its nodes offers the resource ``triton``.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--ray needs the extra 'ray' ({error}): {install_command('ray')}") from error
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{address}: no Ray cluster answers there ({error}); start one with `ray start --head --resources "
            f"'{{\"{RESOURCE}\": 2}}'`, or see `ray status`"
        ) from error
    try:
        places = int(ray.cluster_resources().get(RESOURCE, 0))
        if places < 1:
            raise InputError(
                f"{address}: no node of this cluster offers the resource '{RESOURCE}'; start nodes with `ray start "
                f"--resources '{{\"{RESOURCE}\": N}}'`, N the tasks that the servers are to work for at a time"
            )
        yield Cluster(address, places)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Whether anything listens at an address: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), KNOCK_S).close()


class OnRay:
    """Scores units as tasks of a Ray cluster.

    Parameters
    ----------
    cluster : Cluster
    pool : Pool
        Of this process; what tasks report is added to its counts.
    servers : Servers
        As workers see them.
    batch_rows : int
        Spots a request.
    """

    def __init__(
        self,
        cluster: Cluster,
        pool: Pool,
        servers: Servers,
        *,
        batch_rows: int,
    ) -> None:
        import ray

        self.range_spots: int | None = max(servers.range_spots // batch_rows, 1) * batch_rows
        self.workers: Counter[tuple[str, int]] = Counter()
        self._cluster, self._pool, self._batch_rows = cluster, pool, batch_rows
        self._servers = ray.put(servers)
        # A task that sends coordinates only waits for its answers.
        needs = {"num_cpus": int(servers.send_pixels), "max_retries": RETRIES}
        self._score = ray.remote(score_unit).options(resources={RESOURCE: 1}, **needs)
        self._describe = ray.remote(describe_slide).options(num_cpus=1, max_retries=RETRIES)
        self._room = asyncio.Semaphore(AHEAD * cluster.places)
        self._drained = False

    async def score(self, units: Sequence[SpotRange], *, priority: int, on_part: Callable[[Part], None]) -> None:
        """See :class:`~m2ost_client.archive.runner.Runner`. Ray has no priorities: who came first is served first."""
        failures: list[Exception] = []

        async def one(unit: SpotRange) -> None:
            async with self._room:
                if failures:
                    return
                try:
                    if self._drained:
                        raise Drained
                    scored: Scored = await self._task(
                        self._score, unit.slide, self._pool.info, unit, self._batch_rows, context_headers()
                    )
                except Exception as error:
                    failures.append(error)
                    return
            self._count(scored)
            on_part(scored.part)

        await asyncio.gather(*(one(unit) for unit in units))
        if failures:
            raise next((f for f in failures if not isinstance(f, Drained)), failures[0])

    async def describe(self, path: str, pitch_um: float | None, mpp: float | None) -> SlideInfo:
        """Describe a slide that workers read, by its path there."""
        info: SlideInfo = await self._task(self._describe, path, path, pitch_um, mpp)
        return info

    def drain(self) -> None:
        """See :class:`~m2ost_client.archive.runner.Runner`."""
        self._drained = True

    def facts(self) -> dict[str, Any]:
        """See :class:`~m2ost_client.archive.runner.Runner`."""
        return {
            "ray": {
                "address": self._cluster.address,
                "places": self._cluster.places,
                "tasks": self.workers.total(),
                "workers": len(self.workers),
            }
        }

    def _count(self, scored: Scored) -> None:
        self.workers[scored.worker] += 1
        self._pool.retries += scored.retries
        for endpoint in self._pool.endpoints:
            requests, spots = scored.by_address[endpoint.address]
            endpoint.requests += requests
            endpoint.spots += spots

    async def _task(self, function: Any, slide: str, *arguments: Any) -> Any:
        import ray
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

        ref = function.remote(self._servers, *arguments)
        try:
            return await asyncio.wrap_future(ref.future())
        except asyncio.CancelledError:
            ray.cancel(ref)
            raise
        except RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from None
            raise
        except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
            raise SlideError(
                slide,
                f"{RETRIES + 1} workers of the Ray cluster died over it ({type(error).__name__}); see its dashboard",
            ) from error


class SentByWorkers(Sent):
    """Slides that a cluster's workers read, and this host as well, from a file system that they share.

    Parameters
    ----------
    pool : Pool
    decoder : Decoder
        Of this host.
    runner : OnRay
    """

    def __init__(self, pool: Pool, decoder: Decoder, runner: OnRay) -> None:
        super().__init__(pool, decoder)
        self._runner = runner

    async def describe(self, path: str, pitch_um: float | None, mpp: float | None) -> SlideInfo:
        """See :class:`~m2ost_client.archive.access.Access`."""
        return await self._runner.describe(str(existing(path)), pitch_um, mpp)
