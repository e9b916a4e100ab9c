"""Servers that one name stands for: whether all of them serve the same."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import tritonclient.grpc.aio as triton_aio
from m2ost_contract import EngineInfo
from m2ost_preprocess.network import channel_options, host_of, may_be_several, servers_of, through_proxy
from tritonclient.utils import InferenceServerException

from .credentials import Credentials
from .errors import ReleasesMixed, RequestRejected

ASK_TIMEOUT_S = 3.0
"""Longest time for one of several servers to say what it serves, in seconds; one that is away serves nothing."""

_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")


def servers_behind(address: str) -> list[str]:
    """Each server that an address stands for now, as an address of gRPC's; empty where it can only be one.

    Parameters
    ----------
    address : str
        ``host:port``, ``dns:///name:port``, or a list: ``ipv4:A:PORT,B:PORT``.

    Returns
    -------
    list of str
        Empty too where the name is looked up by somebody else: a proxy.
    """
    if not may_be_several(address) or through_proxy(address):
        return []
    found: set[str] = set()
    for server in servers_of(address):
        try:
            told = socket.getaddrinfo(host_of(server), server.rpartition(":")[2], type=socket.SOCK_STREAM)
        except OSError:  # gRPC says so, when it is asked
            continue
        found |= {_numeric(family, *place[:2]) for family, _, _, _, place in told}
    return sorted(found)


def _numeric(family: socket.AddressFamily, host: Any, port: Any) -> str:
    return f"ipv6:[{host}]:{port}" if family == socket.AF_INET6 else f"ipv4:{host}:{port}"


async def check_same(
    address: str, served: EngineInfo, credentials: Credentials, read: Callable[[Any], Awaitable[EngineInfo]]
) -> None:
    """Refuse a name of which not all servers serve the same: requests to it go to each in turn.

    Parameters
    ----------
    address : str
        See :func:`servers_behind`.
    served : EngineInfo
        What is meant.
    credentials : Credentials
        What each is shown; it has to have a certificate for the name that they share.
    read : callable
        Asks a client of tritonclient's what its server serves.

    Raises
    ------
    ReleasesMixed
        Names a server that serves another release, on another engine, or none of that name. Those that are away or
        full do not count.
    """

    async def complaint(server: str) -> str:
        try:
            found = await _ask(server, address, credentials, read)
        except InferenceServerException as error:
            return "" if str(error.status()).removeprefix("StatusCode.") in _AWAY else f"it says: {error.message()}"
        except RequestRejected as error:
            return str(error)
        return "" if found.identity == served.identity else f"it serves {found.in_words()}"

    servers = await asyncio.to_thread(servers_behind, address)
    complaints = await asyncio.gather(*map(complaint, servers))
    for server, words in zip(servers, complaints, strict=True):
        if words:
            raise ReleasesMixed(address, f"{server.partition(':')[2]} is one of them, and {words}", served.in_words())


async def _ask(
    server: str, address: str, credentials: Credentials, read: Callable[[Any], Awaitable[EngineInfo]]
) -> EngineInfo:
    access = credentials.open(address)
    certified = [] if access.channel is None else [("grpc.ssl_target_name_override", host_of(servers_of(address)[0]))]
    async with triton_aio.InferenceServerClient(
        server, creds=access.channel, channel_args=[*channel_options(server), *access.options, *certified]
    ) as client:
        return await read(access.admit(client))
