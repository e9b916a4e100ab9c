"""What a server takes from its host."""

import contextlib
import socket

import pytest
from m2ost_client import ServerStartError
from m2ost_client.host import Ports, all_listen, held_ports

LOCALHOST = "127.0.0.1"


def test_held_ports_are_the_servers_alone():
    with held_ports(LOCALHOST, Ports()) as ports:
        assert len(set(vars(ports).values())) == 3
        assert not all_listen(LOCALHOST, ports)
        for _ in range(2):  # a server, and the one that replaces it
            servers = [socket.create_server((LOCALHOST, port)) for port in vars(ports).values()]
            assert all_listen(LOCALHOST, ports)
            with pytest.raises(ServerStartError, match=f"cannot listen on {LOCALHOST}:{ports.http} for http"):
                held_ports(LOCALHOST, Ports(http=ports.http)).__enter__()
            for server in servers:
                server.close()
    with held_ports(LOCALHOST, ports) as again:
        assert again == ports


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
