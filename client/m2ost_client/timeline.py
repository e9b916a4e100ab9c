"""What ran when: a timeline of client and server in Chrome's trace format, for chrome://tracing or ui.perfetto.dev.

The client notes its own stages. An embedded server is asked for Triton's own trace of every request, and its decoders
for when they read and cut views. All have the same clock: ``CLOCK_MONOTONIC`` of this host.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import OutputError
from .server.command import decoder_trace

CLIENT, SERVER = "client", "server"

_PHASES = (("queue", "QUEUE_START", "COMPUTE_START"), ("compute", "COMPUTE_START", "COMPUTE_END"))


@dataclass(frozen=True)
class Span:
    """Something that ran.

    Parameters
    ----------
    process, lane, name : str
        Where it is drawn, and what it was.
    start_ns, end_ns : int
        When, by ``time.monotonic_ns``.
    facts : dict
        Shown with it.
    """

    process: str
    lane: str
    name: str
    start_ns: int
    end_ns: int
    facts: dict[str, Any]


class Timeline:
    """Collects spans. Not thread-safe: one event loop notes them."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @contextmanager
    def span(self, lane: str, name: str, **facts: Any) -> Iterator[None]:
        """Note a block of the client's.

        Parameters
        ----------
        lane, name : str
            Where it is drawn, and what it is.
        **facts
            Shown with it.
        """
        began = time.monotonic_ns()
        try:
            yield
        finally:
            self.spans.append(Span(CLIENT, lane, name, began, time.monotonic_ns(), facts))

    def add_server(self, trace: Path) -> None:
        """Add what a server noted: how long requests waited for every model and when it executed them; when its
        decoders read and cut.

        Parameters
        ----------
        trace : Path
            Triton's trace of a server that has ended.

        Raises
        ------
        OutputError
            If the file is not there or not whole; nothing of it is added then.
        """
        try:
            spans = server_spans(json.loads(trace.read_text(encoding="utf-8")))
            decoders = decoder_trace(trace)
            if decoders.exists():  # not where a server had none
                lines = decoders.read_text(encoding="utf-8").splitlines()
                spans += [Span(SERVER, facts={}, **json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError) as error:
            raise OutputError(f"the server left no trace that can be read ({error}); see --server-log") from error
        self.spans += spans

    def write(self, path: Path) -> None:
        """Write the timeline.

        Parameters
        ----------
        path : Path
            A JSON file.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        origin = min((span.start_ns for span in self.spans), default=0)
        lanes = {lane: i for i, lane in enumerate(dict.fromkeys((s.process, s.lane) for s in self.spans), start=1)}
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": process, "tid": i, "args": {"name": lane}}
            for (process, lane), i in lanes.items()
        ]
        events += [
            {
                "ph": "X",
                "name": span.name,
                "pid": span.process,
                "tid": lanes[span.process, span.lane],
                "ts": (span.start_ns - origin) / 1000,
                "dur": (span.end_ns - span.start_ns) / 1000,
                "args": span.facts,
            }
            for span in sorted(self.spans, key=lambda span: span.start_ns)
        ]
        try:
            path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path}: the timeline cannot be written ({error.strerror})") from error


class NoTimeline(Timeline):
    """Keeps nothing, for where nobody asks for a timeline: one connection may bring a million requests."""

    @contextmanager
    def span(self, lane: str, name: str, **facts: Any) -> Iterator[None]:
        """Run the block."""
        yield


def server_spans(records: list[dict[str, Any]]) -> list[Span]:
    """Spans out of Triton's trace. Requests that a model executed together make one span.

    Parameters
    ----------
    records : list of dict
        Each with the ``id`` of a request and its ``model_name`` or some of its ``timestamps``.

    Returns
    -------
    list of Span
        Ensembles, which only hand on, have none.
    """
    models: dict[int, str] = {}
    times: dict[int, dict[str, int]] = {}
    for record in records:
        if "model_name" in record:
            models[record["id"]] = record["model_name"]
        for stamp in record.get("timestamps", ()):
            times.setdefault(record["id"], {})[stamp["name"]] = stamp["ns"]
    together: dict[tuple[str, str, int, int], int] = {}
    for request, stamps in times.items():
        for phase, start, end in _PHASES:
            if request in models and start in stamps and end in stamps:
                key = models[request], phase, stamps[start], stamps[end]
                together[key] = together.get(key, 0) + 1
    return [
        Span(SERVER, f"{model} {phase}", model, start, end, {"requests": requests})
        for (model, phase, start, end), requests in sorted(together.items())
    ]
