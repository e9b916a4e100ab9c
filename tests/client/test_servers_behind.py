"""Which servers a name stands for, and that two releases behind one are refused; on a resolver that is a script."""

import pickle
import socket

import pytest
from m2ost_client.errors import ReleaseChanged, ReleasesMixed
from m2ost_client.servers_behind import servers_behind
from m2ost_contract import OTHER_RELEASE
from tritonclient.utils import InferenceServerException

from .test_connection import Script, ask


def test_a_name_stands_for_all_that_it_is_looked_up_as(monkeypatch):
    def getaddrinfo(host, port, **options):
        assert (host, port) == ("pods.example", "8001")
        stream = (socket.SOCK_STREAM, 6, "")
        v4 = [(socket.AF_INET, *stream, (ip, 8001)) for ip in ("10.0.0.2", "10.0.0.1", "10.0.0.1")]
        return [*v4, (socket.AF_INET6, *stream, ("fd00::1", 8001, 0, 0))]

    for variable in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    found = ["ipv4:10.0.0.1:8001", "ipv4:10.0.0.2:8001", "ipv6:[fd00::1]:8001"]
    assert servers_behind("dns:///pods.example:8001") == found
    monkeypatch.setenv("grpc_proxy", "http://proxy.example:3128")
    assert servers_behind("dns:///pods.example:8001") == [], "the proxy looks the name up"


def test_a_list_stands_for_those_on_it_and_any_other_address_for_one():
    listed = servers_behind("ipv4:127.0.0.2:1,127.0.0.1:2")
    assert listed == ["ipv4:127.0.0.1:2", "ipv4:127.0.0.2:1"]
    assert servers_behind("localhost:8001") == servers_behind("127.0.0.1:8001") == []


def test_a_name_that_nobody_knows_stands_for_none():
    assert servers_behind("dns:///nobody.invalid:8001") == []


def test_one_that_refuses_the_release_while_another_serves_it_is_told_so():
    refusal = InferenceServerException(f"{OTHER_RELEASE} e, the request is for c", status="StatusCode.INVALID_ARGUMENT")
    with pytest.raises(ReleasesMixed, match=r"host:1 stands for servers .*; release cccccccccccc on python was meant"):
        ask(Script(refusal))


def test_it_travels_between_processes():
    error = pickle.loads(pickle.dumps(ReleasesMixed("name", "b is another", "release a")))
    assert isinstance(error, ReleaseChanged)
    assert str(error) == str(ReleasesMixed("name", "b is another", "release a"))
