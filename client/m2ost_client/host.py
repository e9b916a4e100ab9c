"""What a server takes from its host: ports, and shared memory that must not outlive it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import ServerStartError

SHM = Path("/dev/shm")
SHM_PREFIX = "m2ost-"
"""Regions of a server are named after this and the process id of its supervisor."""
CONNECT_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Ports:
    """TCP ports; 0 means any free one."""

    grpc: int = 0
    http: int = 0
    metrics: int = 0


def sweep_shared_memory() -> None:
    """Remove shared memory of servers whose supervisor is gone: what a ``kill -9`` leaves behind."""
    for region in SHM.glob(f"{SHM_PREFIX}*"):
        owner = region.name.removeprefix(SHM_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):  # another user's
                region.unlink(missing_ok=True)


@contextlib.contextmanager
def held_ports(host: str, wanted: Ports) -> Iterator[Ports]:
    """Ports for a server, any free one for 0; no program that asks for any is given them, before it starts or later.

    They are bound, and not listened on. Linux gives no bound port to a program that asks for any, and lets a server
    listen on one if both allow the reuse of addresses, as Triton's three services do.

    Raises
    ------
    ServerStartError
        If a port cannot be bound, as where somebody listens on it, or one is wanted twice.
    """
    named = [port for port in vars(wanted).values() if port]
    if len(set(named)) < len(named):
        raise ServerStartError(f"each service needs a port of its own, got {wanted}; choose others, or 0 for any")
    with contextlib.ExitStack() as held:
        ports = {}
        for name, port in sorted(vars(wanted).items(), key=lambda item: item[1] == 0):  # any is none of the named
            sock = held.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
            except OSError as error:
                raise ServerStartError(
                    f"cannot listen on {host}:{port} for {name}: {error.strerror}; choose another port, or 0 for any"
                ) from error
            ports[name] = sock.getsockname()[1]
        yield Ports(**ports)


def all_listen(host: str, ports: Ports) -> bool:
    """Whether something accepts connections on every port, asked for a second each."""
    try:
        for port in vars(ports).values():
            socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True
