"""All servers of a run as one: requests go where the fewest spots are in flight, and survive a server's end."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from m2ost_contract import EngineInfo

from ..connection import slide_deadline_s
from ..errors import ClientError, InputError, ReleaseChanged, ReleasesMixed, RequestRejected, ServerUnavailable
from .endpoint import Endpoint, EndpointOptions, is_late

_WATCH_S = 0.2

MOST_LATE = 3
"""A request is sent so often that nobody answers in time: its slide may be what keeps the servers."""


@dataclass
class _Tries:
    """Of one request: since when it has failed, and how often its answer did not come in time."""

    failing_since: float = 0.0
    late: int = 0


class Drained(Exception):
    """The run takes up nothing new: what is under way comes to its end, this request is not sent."""


class Pool:
    """The servers of a run; an async context manager.

    Parameters
    ----------
    addresses : sequence of str
        ``host:port`` of their gRPC services.
    options : EndpointOptions, optional
    retry_for_s : float
        How long the run goes on while no server is healthy, or none answers a single request, in seconds.
    check : callable, optional
        Called now and then; what it raises ends the run (an embedded server that was given up).

    Attributes
    ----------
    endpoints : list of Endpoint
    retries : int
        Requests that were sent again so far.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        options: EndpointOptions | None = None,
        *,
        retry_for_s: float = 300.0,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.retries = 0
        self._options = options or EndpointOptions()
        self.endpoints = [Endpoint(address, self._options, self._wake) for address in addresses]
        self._retry_for_s = retry_for_s
        self._check = check or (lambda: None)
        self._info: EngineInfo | None = None
        self._waiting: list[tuple[int, int, asyncio.Future[Endpoint]]] = []
        self._order = itertools.count()
        self._round = itertools.cycle(self.endpoints)
        self._changed = asyncio.Event()
        self._drained = False
        self._failure: BaseException | None = None
        self._answered = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._returning: dict[Endpoint, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Pool:
        """Connect to the servers and read what they serve.

        Raises
        ------
        ServerUnavailable
            If none is healthy within ``retry_for_s``.
        InputError
            If two serve different releases, or on different engines.
        ReleasesMixed
            If servers behind one address do.
        AccessRefused
            If one and this client do not trust each other.
        RequestRejected
            If one serves no release of this project.
        """
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        self._tasks = [asyncio.ensure_future(self._guard(loop)) for loop in (self._dispatch, self._watch)]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    @property
    def info(self) -> EngineInfo:
        """What is served: the same by all."""
        if self._info is None:
            raise RuntimeError("not connected; use `async with Pool(addresses)`")
        return self._info

    @property
    def capacity(self) -> int:
        """Most requests in flight at all servers together."""
        return self._options.window * len(self.endpoints)

    def drain(self) -> None:
        """Send nothing new: requests that wait for a server end with :class:`Drained`, those on their way come home."""
        self._drained = True
        self._settle_all(Drained())

    async def infer(
        self,
        model: str,
        make_inputs: Callable[[], Awaitable[list[Any]]],
        *,
        spots: int,
        priority: int = 0,
        whole: bool = False,
        parameters: Mapping[str, Any] | None = None,
    ) -> Any:
        """Score spots on whichever server has room, again and again while one is lost or full.

        Parameters
        ----------
        model : str
        make_inputs : callable
            Makes the inputs, once there is room for them.
        spots : int
            Spots of the request.
        priority : int
            Requests with the least go first.
        whole : bool
            Whether it is a slide that is scored as a whole, for which more time is allowed.
        parameters : mapping, optional
            Of the request.

        Raises
        ------
        RequestRejected
            If a server refuses it, or ``MOST_LATE`` times there is no answer to it within its deadline.
        ServerUnavailable
            If no server has been healthy for ``retry_for_s``, or none has answered anything.
        ReleasesMixed
            If servers of several releases answer to one address. It ends the run.
        Drained
            If the run takes up nothing new.
        """
        tries, deadline_s = _Tries(), slide_deadline_s(self._options.deadline_s, spots) if whole else None
        while True:
            async with self._place(spots, priority) as endpoint:
                inputs = await make_inputs()
                try:
                    answer = await endpoint.connection.infer(
                        model, inputs, parameters=parameters, deadline_s=deadline_s
                    )
                    endpoint.answered(spots)
                    self._answered = time.monotonic()
                    return answer
                except (ServerUnavailable, ReleaseChanged) as error:
                    await self._again(endpoint, error, tries)

    async def ask(
        self, model: str, inputs: list[Any], *, deadline_s: float, parameters: Mapping[str, Any] | None = None
    ) -> Any:
        """Ask a model that is no part of scoring: beside the windows, and whoever else waits.

        Parameters are those of :meth:`~m2ost_client.connection.Connection.infer`.

        Raises
        ------
        RequestRejected, ServerUnavailable, Drained
            As :meth:`infer`.
        """
        tries = _Tries()
        while True:
            self._check_open()
            endpoint = next((e for e in itertools.islice(self._round, len(self.endpoints)) if e.healthy), None)
            if endpoint is None:
                await asyncio.sleep(_WATCH_S)
                continue
            try:
                answer = await endpoint.connection.infer(model, inputs, deadline_s=deadline_s, parameters=parameters)
                self._answered = time.monotonic()
                return answer
            except (ServerUnavailable, ReleaseChanged) as error:
                await self._again(endpoint, error, tries)

    async def check_release(self) -> None:
        """Ask every healthy server whether it still serves the release that the run began with.

        Raises
        ------
        ReleaseChanged
            If one does not; it is ejected. From then on everybody who asks is told so: it may have answered them too.
        """
        if isinstance(self._failure, ReleaseChanged):
            raise self._failure
        for endpoint in self.endpoints:
            if endpoint.healthy:
                try:
                    await endpoint.connection.check_release()
                except ReleaseChanged as error:
                    endpoint.eject(str(error))
                    self._failure = error
                    raise
                except ClientError as error:
                    endpoint.eject(str(error))

    async def _again(self, endpoint: Endpoint, error: ServerUnavailable | ReleaseChanged, tries: _Tries) -> None:
        """Prepare to send a request again, unless that has been tried for long enough."""
        if isinstance(error, ReleasesMixed):  # the next to be asked behind that name may be either
            self._failure = error
            self._settle_all(error)
            raise error
        self.retries += 1
        tries.late += is_late(error)
        tries.failing_since = tries.failing_since or time.monotonic()
        await endpoint.trouble(error)
        if tries.late >= MOST_LATE:
            raise RequestRejected(f"{tries.late} times no answer in time; last {error}", "DEADLINE_EXCEEDED") from error
        silent_s = time.monotonic() - max(tries.failing_since, self._answered)
        if silent_s >= self._retry_for_s and isinstance(error, ServerUnavailable):
            raise self._unavailable(silent_s, str(error)) from error

    @asynccontextmanager
    async def _place(self, spots: int, priority: int) -> AsyncIterator[Endpoint]:
        self._check_open()
        future: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._order), future))
        self._wake()
        try:
            endpoint = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().end(0)
            raise
        # The dispatcher has taken the place in the window already.
        endpoint.in_flight_spots += spots
        try:
            yield endpoint
        finally:
            endpoint.end(spots)

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._drained:
            raise Drained

    def _wake(self) -> None:
        self._changed.set()

    async def _dispatch(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._waiting:
                endpoint = self._roomiest()
                if endpoint is None:
                    break
                while self._waiting:
                    future = heapq.heappop(self._waiting)[2]
                    if not future.done():
                        endpoint.begin(0)
                        future.set_result(endpoint)
                        break

    def _roomiest(self) -> Endpoint | None:
        """The server with the fewest spots in flight that has room."""
        able = [endpoint for endpoint in self.endpoints if endpoint.room]
        return min(able, key=lambda e: (e.in_flight_spots, e.in_flight), default=None)

    async def _watch(self) -> None:
        """Take servers back, and give up where none is left."""
        without_since: float | None = None
        while True:
            await asyncio.sleep(_WATCH_S)
            now = time.monotonic()
            for endpoint in self.endpoints:
                task = self._returning.get(endpoint)
                if not endpoint.healthy and (task is None or task.done()):
                    self._returning[endpoint] = asyncio.ensure_future(endpoint.keep_trying(self.info))
            without_since = None if any(e.healthy for e in self.endpoints) else without_since or now
            self._check()
            if without_since is not None and now - without_since >= self._retry_for_s:
                raise self._unavailable(now - without_since)
            self._wake()

    async def _guard(self, loop: Callable[[], Awaitable[None]]) -> None:
        """What ends a loop of the pool's ends everything that waits for it."""
        try:
            await loop()
        except Exception as error:
            self._failure = error
            self._settle_all(error)

    def _settle_all(self, error: BaseException) -> None:
        waiting, self._waiting = self._waiting, []
        for _, _, future in waiting:
            if not future.done():
                future.set_exception(error)

    def _unavailable(self, seconds: float, words: str = "") -> ServerUnavailable:
        reasons = words or "; ".join(f"{e.address}: {e.reason}" for e in self.endpoints)
        return ServerUnavailable(
            f"no server has answered for {seconds:.0f} s ({reasons}); check that it runs (`m2ost serve`), then run the "
            "same command again"
        )

    async def _open(self) -> None:
        began = time.monotonic()
        while True:
            self._check()
            await asyncio.gather(*(endpoint.try_open(None) for endpoint in self.endpoints if not endpoint.healthy))
            healthy = [endpoint for endpoint in self.endpoints if endpoint.healthy]
            if healthy:
                break
            if time.monotonic() - began >= self._retry_for_s:
                raise self._unavailable(time.monotonic() - began)
            await asyncio.sleep(0.5)
        self._info = healthy[0].info
        for endpoint in healthy[1:]:
            if endpoint.info.identity != self._info.identity:
                raise InputError(
                    f"{endpoint.address} serves {endpoint.info.in_words()} and "
                    f"{healthy[0].address} {self._info.in_words()}; an archive is scored with one: "
                    "leave one out"
                )

    async def _close(self) -> None:
        tasks = [*self._tasks, *self._returning.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for endpoint in self.endpoints:
            await endpoint.close()
