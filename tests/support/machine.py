"""What tests take of the machine: ports, addresses, namespaces, time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.data import REPOSITORY


@contextmanager
def kept_ports(count: int) -> Iterator[list[int]]:
    """So many ports that nobody listens on, and that nobody is given but the programs that are told them."""
    from m2ost_client.server.host import Ports, held_ports

    with ExitStack() as kept:
        yield [kept.enter_context(held_ports("127.0.0.1", Ports())).grpc for _ in range(count)]


def wait_for(condition, what, seconds=40):
    """What a condition comes to, once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


def need_address(host: str) -> None:
    """Skip the test where this machine has no such address, as one without IPv6."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")


def need_bf16() -> str:
    """The instruction set of bfloat16; skips the test where OpenVINO has none here."""
    from m2ost_contract import EngineError
    from m2ost_serving.engine.mixed import bf16_instructions

    try:
        return bf16_instructions()
    except EngineError as error:
        pytest.skip(f"the gate of bfloat16 needs a processor that computes in it: {error}")


ALL_HERE = (
    "ip link set lo up && ip route add local default dev lo && ip -6 route add local default dev lo"
    " && echo nameserver 192.0.2.53 > /dev/shm/resolv.conf && mount --bind /dev/shm/resolv.conf /etc/resolv.conf"
)
"""Makes every address one of this machine, where nothing listens, and that of names' server one that is nobody's."""


def in_namespaces(script: str, *arguments: object, network: bool = False, **variables: str) -> list[str]:
    """Lines that a Python script prints with a /dev/shm of its own, which no server of this machine uses.

    With ``network`` it has a network of its own too: see ``ALL_HERE``.
    """
    kinds = ["--mount", *(["--net"] if network else [])]
    for command in (["unshare", *kinds], ["unshare", "--user", "--map-root-user", *kinds]):
        if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip(f"this user may make no namespaces: unshare {' '.join(kinds)} is refused, with --user too")
    shell = f'mount -t tmpfs -o size=64m tmpfs /dev/shm && {ALL_HERE if network else "true"} && exec "$@"'
    command += ["sh", "-c", shell, "sh", sys.executable, "-c", script, *map(str, arguments)]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
