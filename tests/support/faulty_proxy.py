"""A proxy before an HTTP server that does harm to what passes, by path; on loopback."""

from __future__ import annotations

import http.client
import http.server
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

PASSED_ON = ("GET", "HEAD", "PUT", "POST", "DELETE")


@dataclass
class Fault:
    """Harm to the requests for one path.

    Parameters
    ----------
    status : int, optional
        Answer this in the server's place.
    cut, stall : bool
        Let half of the body through, then close the connection, or keep silent for as long as the proxy lives.
    before : callable, optional
        Called before the request is passed on.
    methods : tuple of str
        Which requests.
    times : int
        How many of them; then they pass unharmed.
    """

    status: int | None = None
    cut: bool = False
    stall: bool = False
    before: Callable[[], object] | None = None
    methods: tuple[str, ...] = ("GET",)
    times: int = 1_000_000


class FaultyProxy(http.server.ThreadingHTTPServer):
    """The proxy.

    Parameters
    ----------
    host, port : str, int
        Of the server behind it.

    Attributes
    ----------
    faults : dict of str to Fault
        By path; may be changed at any time.
    asked : dict of str to list of str
        Methods of the requests that came, by path.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = host, port
        self.faults: dict[str, Fault] = {}
        self.asked: dict[str, list[str]] = defaultdict(list)
        self.errors: list[BaseException] = []
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep what went wrong here; a client that goes away is none of it."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.errors.append(error)

    def fault_of(self, method: str, path: str) -> Fault:
        """What is done to this request, which is counted."""
        with self.lock:
            self.asked[path].append(method)
            fault = self.faults.get(path)
            if fault is None or method not in fault.methods or fault.times == 0:
                return Fault()
            fault.times -= 1
            return fault


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def log_message(self, *arguments: object) -> None:
        pass

    def _pass_on(self) -> None:
        fault = self.server.fault_of(self.command, unquote(urlsplit(self.path).path))
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault.status is not None:
            self._answer(fault.status, [], b"")
            return
        if fault.before is not None:
            fault.before()
        connection = http.client.HTTPConnection(*self.server.behind, timeout=30)
        connection.request(self.command, self.path, sent or None, dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        self._answer(answer.status, answer.getheaders(), body, fault)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: Fault | None = None) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # of HEAD: what a GET would bring
            elif name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if fault is None or not (fault.cut or fault.stall):
            self.wfile.write(body)
            return
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        if fault.stall:
            self.server.ended.wait()
        self.close_connection = True
        with suppress(OSError):  # a client that has gone before is not connected
            self.connection.shutdown(socket.SHUT_RDWR)


for _method in PASSED_ON:
    setattr(_Handler, f"do_{_method}", _Handler._pass_on)


@contextmanager
def faulty_proxy(host: str, port: int) -> Iterator[FaultyProxy]:
    """A proxy that runs in this process, with no faults yet."""
    with FaultyProxy(host, port) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            proxy.shutdown()
        assert not proxy.errors, proxy.errors
