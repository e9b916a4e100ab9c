"""A receiver of OpenTelemetry's traces: what a client and a tritonserver hand over."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Noted:
    """A span, with ids in hexadecimal digits; ``parent`` is empty where it has none."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    facts: dict[str, str]
    events: tuple[tuple[str, dict[str, str]], ...]
    status: str


class Receiver:
    """What was received so far, and where."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.spans: list[Noted] = []
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()

    def named(self, name: str) -> list[Noted]:
        """The spans of a name."""
        return [span for span in self.spans if span.name == name]

    def take(self, path: str, kind: str, body: bytes) -> None:
        """Receive a request's body."""
        self.paths.add(path)
        self.bodies.append(body)
        self.spans += _of_json(body) if kind == "application/json" else _of_protobuf(body)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """One on this machine, for as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.take(self.path, self.headers["Content-Type"], body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Receiver(server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


def _of_json(body: bytes) -> Iterator[Noted]:
    """Triton's: its ids are digits already, and it has no events that anybody here looks at."""
    for resource in json.loads(body)["resourceSpans"]:
        service = _values((a["key"], a["value"]) for a in resource["resource"]["attributes"])["service.name"]
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                ids = (span[key].lower() for key in ("traceId", "spanId", "parentSpanId"))
                facts = _values((a["key"], a["value"]) for a in span.get("attributes", ()))
                yield Noted(service, span["name"], *ids, facts, (), "")


def _of_protobuf(body: bytes) -> Iterator[Noted]:
    from google.protobuf.json_format import MessageToDict
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    def facts_of(message):
        return _values((a.key, MessageToDict(a.value)) for a in message.attributes)

    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = facts_of(resource.resource)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                ids = (value.hex() for value in (span.trace_id, span.span_id, span.parent_span_id))
                events = tuple((event.name, facts_of(event)) for event in span.events)
                yield Noted(service, span.name, *ids, facts_of(span), events, span.status.message)


def _values(pairs) -> dict[str, str]:
    return {key: str(next(iter(value.values()), "")) for key, value in pairs}
