"""Who listens on a server's ports, and who is connected to them, by what Linux says of all TCP sockets."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .host import Ports, host_port

MOST_PEERS = 10

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTEN = "0A"
_NO_CONNECTION = (_LISTEN, "03", "0C", "07")
"""States of a socket that listens, of one whose peer has not confirmed yet (two), and of one that is closed."""

_CLOSED_HERE = ("04", "05", "06", "0B")
"""States of a connection that was closed on this side: Linux remembers it for a while."""
_WORD = 8

Peer = tuple[str, int]
"""Address and port of the other end."""


@dataclass(frozen=True)
class Peers:
    """The other ends of connections to a server's ports: those that are connected, and those it closed lately."""

    connected: frozenset[Peer] = frozenset()
    closed: frozenset[Peer] = frozenset()


@dataclass(frozen=True)
class _Socket:
    """A row of Linux's table: the local port, both addresses, the state as the table's two digits, the inode."""

    port: int
    host: str
    peer: Peer
    state: str
    inode: str


def unproved_ports(pid: int, host: str, ports: Ports) -> tuple[str, ...]:
    """The ports on which a process does not listen, or not alone, each in words; empty where it has them all.

    Parameters
    ----------
    pid : int
        A process of this user's.
    host : str
        The address that it was told to listen on, as digits.
    ports : Ports
        The ports that it was told to listen on.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        own = set(_inodes(pid))
        found: dict[int, set[str]] = {port: set() for port in vars(ports).values() if port is not None}
        for row in _sockets(found):
            if row.state == _LISTEN and (row.host == host or ipaddress.ip_address(row.host).is_unspecified):
                found[row.port].add(row.inode)
        return tuple(
            f"another process listens on {host_port(host, port)}"
            if inodes
            else f"nothing listens on {host_port(host, port)}"
            for port, inodes in found.items()
            if not inodes or inodes - own
        )
    return ("the process has ended",)


def peers(ports: Ports) -> Peers:
    """The other ends of all connections to the ports."""
    connected: set[Peer] = set()
    closed: set[Peer] = set()
    for row in _sockets(port for port in vars(ports).values() if port is not None):
        if row.state not in _NO_CONNECTION:
            (closed if row.state in _CLOSED_HERE else connected).add(row.peer)
    return Peers(frozenset(connected), frozenset(closed))


def peers_at_end(seen: Sequence[Peers]) -> frozenset[Peer]:
    """Who was connected to a server when it died: as its process ends, Linux closes its connections.

    Parameters
    ----------
    seen : sequence of Peers
        In order of time: while it lived, while it may have been dying, and as soon as it was found dead.
    """
    connected = frozenset[Peer]().union(*(sample.connected for sample in seen))
    return connected | (seen[-1].closed - seen[0].closed)


def named(found: Iterable[Peer]) -> tuple[list[str], int]:
    """Up to ``MOST_PEERS`` of some peers as ``host:port``, and how many more there are.

    Every host is named before the second connection of any.
    """
    seen: Counter[str] = Counter()
    ranked = []
    for host, port in sorted(found):
        ranked.append((seen[host], host, port))
        seen[host] += 1
    shown = sorted(ranked)[:MOST_PEERS]
    return [host_port(host, port) for _, host, port in shown], len(ranked) - len(shown)


def _sockets(ports: Iterable[int]) -> Iterator[_Socket]:
    """The sockets of this network namespace that are bound to some local ports."""
    endings = {f":{port:04X}" for port in ports}
    for table in _TABLES:
        with contextlib.suppress(FileNotFoundError), Path(table).open(encoding="ascii") as rows:  # IPv6 may be off
            for row in rows:
                fields = row.split(maxsplit=10)
                if len(fields) > 9 and fields[1][-5:] in endings:
                    host, port = _address(fields[1])
                    yield _Socket(port, host, _address(fields[2]), fields[3], fields[9])


def _address(text: str) -> Peer:
    """``0100007F:1F41`` → ``127.0.0.1``, 8001: words in the machine's order of bytes, here little-endian."""
    words, _, port = text.partition(":")
    digits = b"".join(bytes.fromhex(words[i : i + _WORD])[::-1] for i in range(0, len(words), _WORD))
    address = ipaddress.ip_address(digits)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), int(port, 16)


def _inodes(pid: int) -> Iterator[str]:
    """Inodes of a process's sockets."""
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(entry.path)
            if target.startswith("socket:["):
                yield target[len("socket:[") : -1]
