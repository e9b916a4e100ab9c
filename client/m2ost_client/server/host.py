"""What a server takes from its host: an address, ports, and shared memory that must not outlive it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from m2ost_preprocess.network import is_here

from ..errors import ServerStartError

SHM = Path("/dev/shm")
SHM_PREFIX = "m2ost-"
"""All that servers of this project leave in /dev/shm is named after this."""
_OWNER = ".owner"


@dataclass(frozen=True)
class Ports:
    """TCP ports; 0 means any free one, and None that there is no such service."""

    grpc: int = 0
    http: int | None = 0
    metrics: int = 0


def of_all_processes(name: str) -> Iterator[tuple[int, str]]:
    """The text of ``/proc/<pid>/<name>`` of each process, with its id; one that ends meanwhile is left out.

    ``Path.glob`` fails there now and then: of a process that ends, Linux may say ESRCH ("no such process"), which glob
    takes for a fault.
    """
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            text = Path("/proc", entry, name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        yield int(entry), text


def new_shm_prefix(owner: str) -> str:
    """How the names of one server's regions in /dev/shm begin; ``owner``, a word, is for whoever looks there."""
    return f"{SHM_PREFIX}{owner}-{secrets.token_hex(4)}-"


@contextlib.contextmanager
def owned_shared_memory(prefix: str) -> Iterator[None]:
    """Own the regions whose names begin with ``prefix``: a sweep leaves them alone until the block or the process ends.

    The owner holds a lock on a file beside them. Unlike a process id, a lock tells owners in other containers too.

    Raises
    ------
    ServerStartError
        If nothing can be written to /dev/shm.
    """
    path = owner_file(prefix)
    try:
        while True:
            held = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(held, fcntl.LOCK_EX)
            if _is_at(held, path):
                break
            os.close(held)  # a sweep has come between the two calls, and removed it
    except OSError as error:
        raise ServerStartError(
            f"cannot write to {SHM}, through which Triton's models hand on tensors: {error}; mount it so that this "
            "user can, or give a container --shm-size 512m"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(held)


def sweep_shared_memory() -> None:
    """Remove shared memory of servers whose supervisor is gone: what is left where its guard was killed with it.

    Who owns regions is told by the lock of :func:`owned_shared_memory`. Regions without its file are left alone.
    """
    for path in SHM.glob(f"{SHM_PREFIX}*{_OWNER}"):
        with contextlib.suppress(OSError), path.open("rb") as owner:  # another user's cannot be opened
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_shared_memory(path.name.removesuffix(_OWNER) + "-")
            path.unlink()


def remove_shared_memory(prefix: str) -> None:
    """Remove all regions whose names begin with ``prefix``."""
    for region in SHM.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def owner_file(prefix: str) -> Path:
    """The file whose lock says that the regions named after ``prefix`` are in use; its own name is none of them."""
    return SHM / f"{prefix.removesuffix('-')}{_OWNER}"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def numeric_host(host: str) -> str:
    """The address behind ``--host``, as digits: of names, Triton's HTTP service understands none.

    Parameters
    ----------
    host : str
        An address, also in brackets, or a name of this machine. Of several, the first of IPv4 is taken.

    Raises
    ------
    ServerStartError
        If there is no such host, or it is not this machine.
    """
    wanted = host.removeprefix("[").removesuffix("]")
    try:
        if not wanted:
            raise OSError("it is empty")
        found = socket.getaddrinfo(wanted, None, type=socket.SOCK_STREAM)
        address = str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
        if not is_here(address):
            raise OSError(f"{address} is not an address of this machine")
    except (OSError, UnicodeError) as error:
        words = getattr(error, "strerror", None) or error
        raise ServerStartError(
            f"cannot listen on the host {host!r}: {words}; give --host an address of this machine, such as 127.0.0.1"
        ) from error
    return address


def host_port(host: str, port: int) -> str:
    """``host:port``, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def held_ports(host: str, wanted: Ports) -> Iterator[Ports]:
    """Ports for a server, any free one for 0; no program that asks for any is given them, before it starts or later.

    They are bound, and not listened on. Linux gives no bound port to a program that asks for any, and lets a server
    listen on one if both allow the reuse of addresses, as Triton's three services do.

    Parameters
    ----------
    host : str
        An address of this machine, as :func:`numeric_host` gives it.
    wanted : Ports

    Raises
    ------
    ServerStartError
        If a port cannot be bound, as where somebody listens on it, or one is wanted twice.
    """
    services = {name: port for name, port in vars(wanted).items() if port is not None}
    named = [port for port in services.values() if port]
    if len(set(named)) < len(named):
        raise ServerStartError(f"each service needs a port of its own, got {wanted}; choose others, or 0 for any")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as held:
        ports: dict[str, int] = {}
        for name, port in sorted(services.items(), key=lambda item: item[1] == 0):  # any is none of the named
            sock = held.enter_context(socket.socket(family))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
            except OSError as error:
                raise ServerStartError(
                    f"cannot listen on {host_port(host, port)} for {name}: {error.strerror}; "
                    "choose another port, or 0 for any"
                ) from error
            ports[name] = sock.getsockname()[1]
        yield replace(wanted, **ports)
