"""Requests to one server that outlive its restarts, go easy on it when it is full, and never mix two releases."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import m2ost_contract as contract
import tritonclient.grpc.aio as triton_aio
from m2ost_contract import EngineInfo, ServedNameError
from m2ost_preprocess.network import channel_options, through_proxy
from tritonclient.utils import InferenceServerException

from .answers import is_dead_stub, read_engine, read_served
from .credentials import Credentials
from .errors import AccessRefused, BadAnswer, ReleaseChanged, ReleasesMixed, RequestRejected, ServerUnavailable
from .handshake import RESTRICTED, why_refused, wrong_token
from .servers_behind import ASK_TIMEOUT_S, check_same
from .timeline import NoTimeline, Timeline
from .tracing import Span, span

FULL_FOR_S = 600.0
"""How long a client waits for a server that is full, in seconds, where none of its requests is answered."""

_AWAY = "UNAVAILABLE"
_TRANSIENT = (_AWAY, "DEADLINE_EXCEEDED", "CANCELLED")


def open_client(address: str, credentials: Credentials | None = None) -> Any:
    """A client of tritonclient's for asyncio, which reaches this machine without a proxy.

    Parameters
    ----------
    address : str
        ``host:port`` of the gRPC service; ``dns:///name:port``, or a list, of several that take turns.
    credentials : Credentials, optional

    Raises
    ------
    InputError
        If the credentials cannot be used, or not for this address.
    """
    access = (credentials or Credentials()).open(address)
    return access.admit(
        triton_aio.InferenceServerClient(
            address, creds=access.channel, channel_args=[*channel_options(address), *access.options]
        )
    )


def slide_deadline_s(deadline_s: float, spots: int) -> float:
    """Deadline of a slide that is scored as a whole, in seconds: that of a request for each of those it would be."""
    return deadline_s * max(1, math.ceil(spots / contract.MAX_ROWS))


async def _config(client: Any, model: str, timeout_s: float) -> Any:
    return (await client.get_model_config(model, client_timeout=timeout_s)).config


def _parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


class Window:
    """How many requests may be in flight: halved when the server is full or away, grown by one a round of successes.

    Parameters
    ----------
    limit : int
        Most requests in flight.

    Attributes
    ----------
    size : int
        Requests that may be in flight now.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self.size, self._successes = limit, limit, 0

    def shrink(self) -> None:
        """Note that the server is full or away."""
        self.size, self._successes = max(1, self.size // 2), 0

    def success(self) -> None:
        """Note a request that was answered."""
        self._successes += 1
        if self._successes >= self.size:
            self.size, self._successes = min(self._limit, self.size + 1), 0


class Connection:
    """A connection to one server and the release it serves.

    Parameters
    ----------
    address : str
        ``host:port`` of the gRPC service.
    deadline_s : float
        Deadline of one request in seconds.
    retry_for_s : float
        How long a request is sent again while the server is away, in seconds.
    full_for_s : float
        How long it is sent again while the server is there and full, in seconds. It starts anew with every answer that
        any request of this connection gets.
    background : bool
        Whether the server is asked to let requests of others go first.
    window : Window
        Told of every request that must be sent again.
    model : str, optional
        Name of the release that is meant; the server's only one by default.
    credentials : Credentials, optional
        What the server is shown, and whom this client trusts.
    transport : callable, optional
        Makes a client for an address, in place of :func:`open_client`.
    timeline : Timeline, optional
        Where requests are noted; nowhere without.

    Attributes
    ----------
    retries : int
        Requests that were sent again so far.
    """

    def __init__(
        self,
        address: str,
        *,
        deadline_s: float,
        retry_for_s: float,
        full_for_s: float = FULL_FOR_S,
        background: bool = False,
        window: Window,
        model: str | None = None,
        credentials: Credentials | None = None,
        transport: Callable[[str], Any] | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        self.address = address
        self.retries = 0
        self._deadline_s, self._retry_for_s = deadline_s, retry_for_s
        self._full_for_s, self._background = full_for_s, background
        self._answered_at = -math.inf
        self._window, self._model = window, model
        self._credentials = credentials or Credentials()
        self._transport = transport or partial(open_client, credentials=self._credentials)
        self._examined = False
        self._timeline = timeline or NoTimeline()
        self._client: Any = None
        self._info: EngineInfo | None = None
        self._run = secrets.token_hex(4)
        self._requests = 0

    async def open(self) -> None:
        """Connect and read what is served.

        Raises
        ------
        InputError
            If the credentials cannot be used, or not for this address.
        AccessRefused
            If server and client do not trust each other.
        ServerUnavailable
            If the server is away for ``retry_for_s``, or full for ``full_for_s``.
        RequestRejected
            If the server serves no release of this project, none of that name, or several and none is named.
        ReleasesMixed
            If servers behind the address serve different releases, or on different engines.
        """
        self._client = self._transport(self.address)
        try:
            self._info = await self._retrying(self._read_info)
            await self._check_same(self._info)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End it."""
        await self._client.close()

    @property
    def info(self) -> EngineInfo:
        """What the server served when the connection was opened."""
        if self._info is None:
            raise RuntimeError("not connected; use `async with SpotStream(address)`")
        return self._info

    async def infer(
        self,
        model: str,
        inputs: list[Any],
        *,
        deadline_s: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Any:
        """Ask a model, again and again while the server is away or full.

        Parameters
        ----------
        model : str
            Name of the model.
        inputs : list
            Inputs of tritonclient's.
        deadline_s : float, optional
            In place of the connection's.
        parameters : mapping, optional
            Of the request, beside the release that is meant.

        Raises
        ------
        RequestRejected
            If the server refuses the request.
        ServerUnavailable
            If the server is away for ``retry_for_s``, or full for ``full_for_s``.
        ReleaseChanged
            If the server comes back with another release, or another server behind the address has one.
        """
        limit_s = deadline_s or self._deadline_s
        told = {contract.RELEASE_PARAMETER: self.info.release_sha256, **(parameters or {})}
        if self._background:
            told[contract.BACKGROUND_PARAMETER] = True

        async def send() -> Any:
            self._requests += 1
            return await self._client.infer(
                model,
                inputs,
                request_id=f"{self._run}-{self._requests}",
                client_timeout=limit_s,
                timeout=int(limit_s * 1e6),  # the server stops work that its client will not wait for
                parameters=told,
                headers=noted.headers,
            )

        with self._timeline.span("requests", model), span(model, {"server.address": self.address}, asks=True) as noted:
            return await self._retrying(send, noted)

    async def check_release(self) -> None:
        """Ask whether the release is still the one served when the connection was opened.

        Raises
        ------
        ReleaseChanged
            If not. Otherwise as :meth:`infer`.
        """
        await self._retrying(self._compare_release)

    async def _compare_release(self) -> None:
        if self._info is None:
            return
        await self._check_same(self._info)
        now = await self._read_info()
        if now.identity != self._info.identity:
            raise ReleaseChanged(
                f"{self.address} now serves {now.in_words()}, the slide began with {self._info.in_words()}; "
                "run it again"
            )

    async def _check_same(self, served: EngineInfo) -> None:
        """Refuse an address behind which not all serve what is meant."""
        await check_same(
            self.address, served, self._credentials, lambda client: self._read_engine(client, served, ASK_TIMEOUT_S)
        )

    async def _read_info(self) -> EngineInfo:
        return await self._read_engine(self._client, self._info, self._deadline_s)

    async def _read_engine(self, client: Any, known: EngineInfo | None, timeout_s: float) -> EngineInfo:
        """What a server serves: under the names that are known, or the release that is meant."""
        try:
            if known is None:
                served = read_served(_parameters(await _config(client, contract.MODEL_INFO, timeout_s)))
                engine = contract.choose(served, self._model)
            else:
                engine = known.names.engine
            config = await _config(client, engine, timeout_s)
            return read_engine(_parameters(config), config.backend)
        except BadAnswer as error:
            raise RequestRejected(f"{self.address}: {error}", "FAILED_PRECONDITION") from error
        except ServedNameError as error:
            raise RequestRejected(f"{self.address}: {error}", "NOT_FOUND") from error

    async def _retrying(self, call: Callable[[], Awaitable[Any]], noted: Span | None = None) -> Any:
        """Call until it succeeds, is refused, or the server was away or full for too long."""
        failing_since, pause_s = None, 0.1
        away_since: float | None = None
        full_since: float | None = None
        while True:
            try:
                answer = await call()
                self._answered_at = time.monotonic()
                if failing_since is not None:
                    await self._compare_release()
                return answer
            except InferenceServerException as error:
                message, status = str(error.message()), str(error.status() or "").removeprefix("StatusCode.")
                if status not in _TRANSIENT and not is_dead_stub(message):
                    with suppress(InferenceServerException):
                        await self._compare_release()
                    if self._info is not None and contract.OTHER_RELEASE in message:
                        raise ReleasesMixed(self.address, message, self._info.in_words()) from error
                    raise RequestRejected(message, status) from error
                if status == _AWAY:
                    await self._check_access(message, error)
                now = time.monotonic()
                failing_since = failing_since or now
                if contract.QUEUE_FULL in message:
                    away_since, full_since = None, full_since or now
                    if now - max(full_since, self._answered_at) >= self._full_for_s:
                        raise ServerUnavailable(
                            f"{self.address}: full for {now - full_since:.0f} s, and nothing of this client's was "
                            "answered meanwhile; send fewer requests at a time, or serve with more servers"
                        ) from error
                else:
                    away_since = away_since or now
                    if now - max(away_since, self._answered_at) >= self._retry_for_s:
                        waited = f"{now - away_since:.0f} s{through_proxy(self.address)}"
                        raise ServerUnavailable(
                            f"{self.address}: no answer for {waited} ({status}: {message}); check that the server runs "
                            "(`m2ost serve`) and that the address is its gRPC port"
                        ) from error
            self.retries += 1
            self._window.shrink()
            if noted is not None:
                noted.event("sent again", status=status, reason=message)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(pause_s * 2, 5.0)

    async def _check_access(self, message: str, error: InferenceServerException) -> None:
        """Whether a server that cannot be asked is away; raises where it or this client refuses the other."""
        if RESTRICTED in message:
            raise AccessRefused(wrong_token(self.address, self._credentials)) from error
        if self._examined or self._answered_at > -math.inf or contract.QUEUE_FULL in message:
            return
        self._examined = True
        reason = await asyncio.to_thread(why_refused, self.address, self._credentials)
        if reason:
            raise AccessRefused(reason) from error
