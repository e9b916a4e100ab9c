"""Triton's log as JSON objects, one a line."""

from __future__ import annotations

import collections
import json
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from .probe import PROBE_REQUEST_ID

_LINE = re.compile(r"([VIWE])(\d{4} \d\d:\d\d:\d\d\.\d+) \d+ ([\w.]+:\d+)\] ?(.*)$")
_LEVELS = {"V": "debug", "I": "info", "W": "warning", "E": "error"}
_TABLE = ("+-", "| ")

_BEGUN, _LOADED = re.compile(r"loading: ([^:]+):\d+$"), re.compile(r"successfully loaded '([^']+)'")
_REFUSAL = re.compile(r"failed to load '([^']+)' version")
_TRACEBACK = "\n\nAt:\n"
"""How the Python backend goes on after an exception's words."""
_LAST_WORDS = 8

_EXPECTED_WITHOUT_GPU = (
    "CUDA driver version is insufficient",
    "CudaDriverHelper has not been initialized",
    "Failed to initialize NVML",
    "DCGM unable to start",
    "no pinned memory pool",
    "CUDA memory pool disabled",
)


def parse_line(line: str) -> dict[str, Any] | None:
    """One line of Triton's output as an object, or None for blank lines and the frames of its tables.

    A message that is itself a JSON object, as our models log it, is merged in: its ``event`` and ``request_id`` stand
    at the top level. What a server without a GPU says about that, and the answers to liveness probes, come at level
    ``debug``.
    """
    line = line.rstrip()
    if not line or line.startswith(_TABLE):
        return None
    match = _LINE.match(line)
    if match is None:
        level = "debug" if any(s in line for s in _EXPECTED_WITHOUT_GPU) else "info"
        return {"time": _now(), "level": level, "source": "tritonserver", "message": line}
    severity, stamp, source, message = match.groups()
    if not message:
        return None
    if message.startswith('"') and message.endswith('"'):
        try:
            message = json.loads(message)
        except ValueError:
            message = message[1:-1]
    record: dict[str, Any] = {"time": _time(stamp), "level": _LEVELS[severity], "source": source}
    if any(s in message for s in _EXPECTED_WITHOUT_GPU):
        record["level"] = "debug"
    try:
        fields = json.loads(message)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return {**record, "message": message}
    if fields.get("request_id") == PROBE_REQUEST_ID:
        record["level"] = "debug"
    return {**record, **fields}


class LastWords:
    """What a server said last that tells why it failed.

    Attributes
    ----------
    refusals : tuple of str
        The models that failed to load, in words.
    loading : tuple of str
        The models that have begun to load and neither failed nor come to an end.
    """

    def __init__(self) -> None:
        self.refusals: tuple[str, ...] = ()
        self.loading: tuple[str, ...] = ()
        self._errors: collections.deque[str] = collections.deque(maxlen=_LAST_WORDS)
        self._others: collections.deque[str] = collections.deque(maxlen=_LAST_WORDS)

    def add(self, record: dict[str, Any]) -> None:
        """Take a record in."""
        fields = (str(record[name]) for name in ("message", "event", "error") if name in record)
        words = ": ".join(fields).partition(_TRACEBACK)[0].strip()
        if match := _BEGUN.match(words):
            self.loading = (*self.loading, match[1])
        elif match := _LOADED.match(words):
            self.loading = tuple(model for model in self.loading if model != match[1])
        if record["level"] == "error":
            self._errors.append(words)
            if match := _REFUSAL.match(words):
                self.refusals = (*self.refusals, f"model {match[1]} failed to load")
        elif record["level"] == "warning" or (record["source"] == "tritonserver" and record["level"] == "info"):
            # The latter is what a process says outside Triton's log: a shell, a loader, a library that gives up.
            self._others.append(words)

    def lines(self) -> list[str]:
        """The last errors, each once; where there are none, the last lines that are no part of Triton's log."""
        return list(dict.fromkeys(list(self._errors or self._others)))


class Sink:
    """Hands records to a receiver; one that fails is dropped: a full disk or a closed pipe must not end a server.

    Parameters
    ----------
    receive : callable, optional
        Receives every record.
    """

    def __init__(self, receive: Callable[[dict[str, Any]], None] | None) -> None:
        self._receive = receive

    def __call__(self, record: dict[str, Any]) -> None:
        if self._receive is None:
            return
        try:
            self._receive(record)
        except Exception as error:
            self._receive = None
            logging.getLogger(__name__).warning("the server's log is cut off here and the server runs on: %r", error)


def event(level: str, name: str, **fields: Any) -> dict[str, Any]:
    """An event of the supervisor's own."""
    return {"time": _now(), "level": level, "source": "supervisor", "event": name, **fields}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _time(stamp: str) -> str:
    # Triton writes month, day and UTC time of day, without the year.
    now = datetime.now(UTC)
    when = datetime.strptime(f"{now.year}{stamp}", "%Y%m%d %H:%M:%S.%f").replace(tzinfo=UTC)
    return when.isoformat(timespec="milliseconds")
