"""What a server takes from its host."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest
from m2ost_client import ServerStartError
from m2ost_client.server.host import Ports, held_ports, host_port, numeric_host
from m2ost_client.server.sockets import unproved_ports

from tests.support.machine import in_namespaces, need_address

LOCALHOST = "127.0.0.1"


def test_held_ports_are_the_servers_alone():
    with held_ports(LOCALHOST, Ports()) as ports:
        assert len(set(vars(ports).values())) == 3
        assert len(unproved_ports(os.getpid(), LOCALHOST, ports)) == 3
        for _ in range(2):  # a server, and the one that replaces it
            servers = [socket.create_server((LOCALHOST, port)) for port in vars(ports).values()]
            assert not unproved_ports(os.getpid(), LOCALHOST, ports)
            with pytest.raises(ServerStartError, match=f"cannot listen on {LOCALHOST}:{ports.http} for http"):
                held_ports(LOCALHOST, Ports(http=ports.http)).__enter__()
            for server in servers:
                server.close()
    with held_ports(LOCALHOST, ports) as again:
        assert again == ports


def test_a_service_that_is_off_has_no_port():
    with held_ports(LOCALHOST, Ports(http=None)) as ports:
        assert ports.http is None
        assert ports.grpc != ports.metrics
        servers = [socket.create_server((LOCALHOST, port)) for port in (ports.grpc, ports.metrics)]
        assert not unproved_ports(os.getpid(), LOCALHOST, ports)
        for server in servers:
            server.close()


def test_no_other_program_is_given_a_held_port():
    with contextlib.ExitStack() as stack:
        held, drawn = set(), set()
        for _ in range(80):
            held.update(vars(stack.enter_context(held_ports(LOCALHOST, Ports()))).values())
        for _ in range(240):  # of some 7,000: eight would be among the held ones if that were up to chance
            drawn.add(stack.enter_context(socket.create_server((LOCALHOST, 0))).getsockname()[1])
    assert (len(held), len(drawn)) == (240, 240)
    assert not held & drawn


def test_a_port_for_two_services_is_refused():
    with pytest.raises(ServerStartError, match="a port of its own"):
        held_ports(LOCALHOST, Ports(grpc=8001, http=8001)).__enter__()


@pytest.mark.parametrize(
    ("given", "address", "listens_at"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1:"),
        ("localhost", "127.0.0.1", "127.0.0.1:"),
        ("0.0.0.0", "0.0.0.0", "0.0.0.0:"),
        ("::1", "::1", "[::1]:"),
        ("[::1]", "::1", "[::1]:"),
    ],
)
def test_a_host_becomes_the_address_that_is_listened_at(given, address, listens_at):
    need_address(address)
    assert numeric_host(given) == address
    with held_ports(address, Ports()) as ports:
        assert len(unproved_ports(os.getpid(), address, ports)) == 3
        assert host_port(address, ports.grpc) == f"{listens_at}{ports.grpc}"
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        servers = [socket.create_server((address, port), family=family) for port in vars(ports).values()]
        assert not unproved_ports(os.getpid(), address, ports)
        for server in servers:
            server.close()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("", "it is empty"),
        ("192.0.2.7", "192.0.2.7 is not an address of this machine"),
        ("no such host", "[Nn]ame"),
        ("a" * 300, "label"),
    ],
)
def test_a_host_that_is_not_this_machine_is_refused_in_true_words(host, words):
    with pytest.raises(ServerStartError, match=f"{words}.*; give --host an address of this machine"):
        numeric_host(host)


SWEEPS = """
import subprocess, sys
from m2ost_client.server.host import SHM, new_shm_prefix, owned_shared_memory, sweep_shared_memory

def left():
    return " ".join(sorted(path.name.rpartition("-")[2] for path in SHM.iterdir()))

if sys.argv[1:] == ["own"]:
    prefix = new_shm_prefix("4194304")  # a process id that no process has
    with owned_shared_memory(prefix):
        (SHM / f"{prefix}region").touch()
        print(left(), flush=True)
        sys.stdin.read()
else:
    owner = subprocess.Popen(
        [sys.executable, "-c", sys.argv[1], "own"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    owner.stdout.readline()
    (SHM / "m2ost-4194304-of_nobody").touch()
    sweep_shared_memory()
    print(left())
    owner.kill()
    owner.wait()
    print(left())
    sweep_shared_memory()
    print(left())
    with owned_shared_memory("m2ost-1-ab-"):
        sweep_shared_memory()
        print(left())
    print(left())
"""


def test_shared_memory_is_swept_once_nobody_holds_its_lock_whatever_its_name_says():
    lines = [[word.rpartition(".")[2] for word in line.split()] for line in in_namespaces(SWEEPS, SWEEPS)]
    kept = ["of_nobody"]
    assert [sorted(line) for line in lines] == [
        ["of_nobody", "owner", "region"],
        ["of_nobody", "owner", "region"],
        kept,
        ["of_nobody", "owner"],
        kept,
    ]


def test_a_dev_shm_that_cannot_be_written_to_is_an_error_in_words():
    script = """
import subprocess
from m2ost_client.errors import ServerStartError
from m2ost_client.server.host import owned_shared_memory
subprocess.run(["mount", "-o", "remount,ro", "/dev/shm"], check=True)
try:
    owned_shared_memory("m2ost-1-ab-").__enter__()
except ServerStartError as error:
    print(error)
"""
    (line,) = in_namespaces(script)
    assert line.startswith("cannot write to /dev/shm, through which Triton's models hand on tensors: ")


def test_processes_that_end_while_they_are_read_are_left_out():
    """Linux says ENOENT of most of them and ESRCH of a few."""
    program = """
import os, signal
from m2ost_client.server.host import of_all_processes
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.listdir = lambda folder: ["self", str(child), str(os.getpid())]
for _ in range(500):
    if not (child := os.fork()):
        os._exit(0)
    while len(found := dict(of_all_processes("stat"))) > 1:
        pass
    assert list(found) == [os.getpid()]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
