"""Which requests go through the environment's proxies, asked of a real one."""

import http.server
import threading
from contextlib import contextmanager

import pytest
from m2ost_contract import METRICS_URL_ENV
from m2ost_preprocess.network import all_here, channel_options, host_of, is_here, read_url, servers_of, through_proxy
from m2ost_serving.backlog import read_metrics

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy")
EXCEPTIONS = ("no_proxy", "NO_PROXY", "no_grpc_proxy")
ELSEWHERE = "192.0.2.7"
"""Of a network that is for documentation, and nobody's."""


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in (*PROXIES, *EXCEPTIONS):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def web_server():
    """A server on loopback, and the targets that it was asked for; a proxy is asked for a whole URL."""
    asked = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'nv_inference_pending_request_count{model="m2ost",version="1"} 3\n')

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
        thread.start()
        yield server.server_port, asked
        server.shutdown()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_no_proxy_is_asked_for_what_is_on_this_machine(monkeypatch, variable, host):
    with web_server() as (port, asked), web_server() as (proxy, of_the_proxy):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy}")
        monkeypatch.setenv(METRICS_URL_ENV, f"http://{host}:{port}/metrics")
        assert "nv_inference" in read_metrics()
    assert (asked, of_the_proxy) == (["/metrics"], [])


def test_the_environments_proxy_is_asked_for_other_machines(monkeypatch):
    url = f"http://{ELSEWHERE}:8002/metrics"
    with web_server() as (proxy, asked):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
        assert "nv_inference" in read_url(url, 5)
    assert asked == [url]
    monkeypatch.setenv("http_proxy", "http://somebody:secret@127.0.0.1:9")
    with pytest.raises(OSError, match=r"no answer through the proxy http://127\.0\.0\.1:9 .*refused") as caught:
        read_url(url, 5)
    assert "secret" not in str(caught.value)


def test_an_answer_that_is_cut_and_an_address_that_is_none_are_errors_of_the_same_kind():
    for url in ("http://127.0.0.1:9/metrics", "127.0.0.1:8002/metrics", "http://[::1:8002/metrics", ""):
        with pytest.raises(OSError, match="no answer: "):
            read_url(url, 1)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("0.0.0.0", True),
        ("::", True),
        ("localhost", True),
        ("triton.localhost", True),
        (ELSEWHERE, False),
        ("2001:db8::7", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_what_is_this_machine(host, here):
    assert is_here(host) == here
    options = dict(channel_options(f"[{host}]:8001" if ":" in host else f"{host}:8001"))
    assert options.pop("grpc.enable_http_proxy", 1) == (0 if here else 1)
    assert set(options.values()) == {-1}


@pytest.mark.parametrize(
    ("address", "host"),
    [("a.org:1", "a.org"), ("[::1]:1", "::1"), ("http://a.org:1/x", "a.org"), ("[::1:8001", ""), ("", "")],
)
def test_the_host_of_an_address(address, host):
    assert host_of(address) == host


@pytest.mark.parametrize(
    ("address", "servers", "here"),
    [
        ("a.org:1", ["a.org:1"], False),
        ("dns:///a.org:1", ["a.org:1"], False),
        ("dns://192.0.2.1/localhost:1", ["localhost:1"], True),
        ("dns:localhost:1", ["localhost:1"], True),
        ("ipv4:127.0.0.2:1,127.0.0.3:1", ["127.0.0.2:1", "127.0.0.3:1"], True),
        (f"ipv4:127.0.0.2:1,{ELSEWHERE}:1", ["127.0.0.2:1", f"{ELSEWHERE}:1"], False),
        ("ipv6:[::1]:1,[::1]:2", ["[::1]:1", "[::1]:2"], True),
    ],
)
def test_an_address_that_may_stand_for_several_servers_has_them_take_turns(address, servers, here):
    assert servers_of(address) == servers
    assert all_here(address) == here
    options = dict(channel_options(address))
    assert options.get("grpc.lb_policy_name") == (None if address == "a.org:1" else "round_robin")
    assert ("grpc.enable_http_proxy" in options) == here


def test_the_proxy_that_grpc_takes_is_named(monkeypatch):
    assert through_proxy(f"{ELSEWHERE}:8001") == ""
    monkeypatch.setenv("HTTP_PROXY", "http://capitals:1")
    assert through_proxy(f"{ELSEWHERE}:8001") == "", "gRPC knows no variable in capitals"
    monkeypatch.setenv("http_proxy", "http://somebody:secret@proxy:3128")
    words = through_proxy(f"{ELSEWHERE}:8001")
    assert words == f" through the proxy of http_proxy, http://proxy:3128 (no_proxy={ELSEWHERE} leaves it out)"
    assert through_proxy("127.0.0.1:8001") == ""
    monkeypatch.setenv("no_proxy", f"{ELSEWHERE},example.org")
    assert through_proxy(f"{ELSEWHERE}:8001") == ""
    assert "http://proxy:3128" in through_proxy("a.net:8001")
    assert "no_proxy=a.net" in through_proxy("dns:///a.net:8001")
    monkeypatch.setenv("grpc_proxy", "")
    assert through_proxy("a.net:8001") == "", "one that is empty stands for none"
