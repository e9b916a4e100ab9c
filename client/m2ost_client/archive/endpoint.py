"""One server of an archive's run: whether it can be used now, and for how many requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from m2ost_contract import EngineInfo

from ..answers import is_dead_stub
from ..connection import Connection, Window, open_client
from ..credentials import Credentials
from ..errors import ClientError, InputError, ReleaseChanged, ServerUnavailable
from ..server.probe import probe

LIVE_TIMEOUT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """How a server is used.

    Parameters
    ----------
    window : int
        Most requests in flight. They are background work, which a server does last.
    deadline_s : float
        Deadline of one request in seconds. While others keep a server busy, background requests get on slowly.
    probe_pause_s : float
        First pause between two attempts to take an ejected server back, in seconds; doubles up to 5.
    model : str, optional
        Name of the release that is meant, on servers of several.
    credentials : Credentials
        What the server is shown, and whom this client trusts.
    """

    window: int = 2
    deadline_s: float = 300.0
    probe_pause_s: float = 0.25
    model: str | None = None
    credentials: Credentials = field(default_factory=Credentials)


def is_late(error: ServerUnavailable | ReleaseChanged) -> bool:
    """Whether an error is about an answer that did not come within the deadline."""
    return "DEADLINE_EXCEEDED" in str(getattr(error.__cause__, "status", lambda: "")())


class Endpoint:
    """A server, used while it is healthy.

    Ejected when it is away, hung or has lost a model; taken back once it answers real inferences with the same
    release and engine.

    Parameters
    ----------
    address : str
        ``host:port`` of its gRPC service.
    options : EndpointOptions
    on_change : callable
        Called whenever it may have become usable.

    Attributes
    ----------
    healthy : bool
        Whether it is used.
    reason : str
        Why it is not.
    window : Window
        Halved when the server is full.
    in_flight : int
        Requests under way.
    in_flight_spots : int
        Their spots: by this the pool balances.
    requests, spots, ejections, returns : int
        Counts, for the summary: answered requests and their spots, how often it was ejected and taken back.
    """

    def __init__(self, address: str, options: EndpointOptions, on_change: Callable[[], None]) -> None:
        self.address = address
        self.healthy, self.reason = False, "not asked yet"
        self.window = Window(options.window)
        self.in_flight = self.in_flight_spots = 0
        self.requests = self.spots = self.ejections = self.returns = 0
        self._options = options
        self._on_change = on_change
        self._connection: Connection | None = None
        self._retired: list[Connection] = []
        self._busy_until = 0.0
        self._pause_s = 0.1

    @property
    def connection(self) -> Connection:
        """The connection of a healthy server."""
        assert self._connection is not None
        return self._connection

    @property
    def info(self) -> EngineInfo:
        """What it served when it was last found healthy."""
        return self.connection.info

    async def try_open(self, served: EngineInfo | None) -> bool:
        """Connect, and use it if it answers real inferences with the release and engine of the archive.

        Parameters
        ----------
        served : EngineInfo or None
            What the archive is scored with; None takes any.

        Raises
        ------
        InputError
            If the credentials cannot be used, or not for this address.
        AccessRefused
            If server and client do not trust each other.
        RequestRejected
            If it serves no release of this project.
        """
        connection = Connection(
            self.address,
            deadline_s=self._options.deadline_s,
            retry_for_s=0.0,
            full_for_s=0.0,
            background=True,
            window=self.window,
            model=self._options.model,
            credentials=self._options.credentials,
        )
        try:
            await connection.open()
        except ServerUnavailable as error:
            self.reason = str(error)
            return False
        self.reason = await self._complaint(connection, served)
        if self.reason:
            await connection.close()
            return False
        # Requests may still be on their way over the one before: closing it would cancel them.
        self._retired += [self._connection] if self._connection is not None else []
        self._connection, self.healthy = connection, True
        self._on_change()
        return True

    async def _complaint(self, connection: Connection, served: EngineInfo | None) -> str:
        if served is not None and connection.info.identity != served.identity:
            return f"serves {connection.info.in_words()}, not {served.in_words()}"
        access = self._options.credentials.open(self.address)
        health = await asyncio.to_thread(probe, self.address, [connection.info], access=access)
        return "" if health.ready else f"does not answer: {', '.join((*health.dead, *health.silent))}"

    async def keep_trying(self, served: EngineInfo) -> None:
        """Take it back as soon as it is well again."""
        pause_s = self._options.probe_pause_s
        while not self.healthy:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)
            try:
                self.returns += await self.try_open(served)
            except ClientError as error:
                self.reason = str(error)

    async def close(self) -> None:
        """End its connections; what is in flight comes to nothing."""
        connections = [*self._retired, *([self._connection] if self._connection is not None else [])]
        self._retired, self._connection = [], None
        for connection in connections:
            await connection.close()

    @property
    def room(self) -> int:
        """Requests that may be sent now, as far as this server's own answers tell."""
        if not self.healthy or time.monotonic() < self._busy_until:
            return 0
        return max(0, self.window.size - self.in_flight)

    def begin(self, spots: int) -> None:
        """Note that a request is being sent."""
        self.in_flight += 1
        self.in_flight_spots += spots

    def end(self, spots: int) -> None:
        """Note that it came to an end, whichever."""
        self.in_flight -= 1
        self.in_flight_spots -= spots
        self._on_change()

    def answered(self, spots: int) -> None:
        """Note an answer."""
        self.requests += 1
        self.spots += spots
        self._pause_s = 0.1
        self.window.success()

    async def trouble(self, error: ServerUnavailable | ReleaseChanged) -> None:
        """Find out what a request without an answer means: the server is full and left alone for a while, or gone."""
        words = str(error)
        if isinstance(error, ReleaseChanged) or is_late(error) or is_dead_stub(words) or not await self._is_live():
            self.eject(words)
            return
        self.window.shrink()
        self._busy_until = time.monotonic() + self._pause_s
        asyncio.get_running_loop().call_later(self._pause_s, self._on_change)
        self._pause_s = min(2 * self._pause_s, 5.0)

    def eject(self, reason: str) -> None:
        """Use it no more until it is found healthy."""
        if self.healthy:
            self.healthy, self.reason = False, reason
            self.ejections += 1

    async def _is_live(self) -> bool:
        # On a connection of its own: one that has lost its server waits before it tries again.
        try:
            client = open_client(self.address, self._options.credentials)
        except InputError:  # since they were last read; whoever tries to take it back says why
            return False
        try:
            return bool(await client.is_server_live(client_timeout=LIVE_TIMEOUT_S))
        except Exception:  # whatever it is, it is no answer
            return False
        finally:
            await client.close()

    def counts(self) -> dict[str, Any]:
        """For the summary."""
        return {
            "address": self.address,
            "healthy": self.healthy,
            "reason": self.reason or None,
            "requests": self.requests,
            "spots": self.spots,
            "ejections": self.ejections,
            "returns": self.returns,
        }
