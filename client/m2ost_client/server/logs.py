"""Triton's log as JSON objects, one a line."""

from __future__ import annotations

import collections
import json
import logging
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

MOST_LINE_BYTES = 16 << 10
"""Of a longer line of a server's, the beginning is kept: a client may have chosen what it quotes."""

MOST_ALIKE = 10
"""Lines of the same words that are handed on within ``BURST_S``."""

BURST_S = 1.0
"""How long lines of the same words are counted together, in seconds."""

NOT_TRITONS = "tritonserver"
"""Source of what a server's process says outside Triton's log, whose lines name a file of its source."""

_MOST_DISTINCT = 256
"""Different lines that are told apart within ``BURST_S``; with more, counting begins anew."""

_LINE = re.compile(r"([VIWE])(\d{4} \d\d:\d\d:\d\d\.\d+) \d+ ([\w.]+:\d+)\] ?(.*)$")
_LEVELS = {"V": "debug", "I": "info", "W": "warning", "E": "error"}
_STAMP = re.compile(rb"[VIWE](\d{4} \d\d:\d\d:\d\d\.\d+ )\d+ ")
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


def parse_line(line: str, probe_id: str = "") -> dict[str, Any] | None:
    """One line of Triton's output as an object, or None for blank lines and the frames of its tables.

    A message that is itself a JSON object, as our models log it, is merged in: its ``event`` and ``request_id`` stand
    at the top level. What a server without a GPU says about that, and the answers to liveness probes, whose request id
    is ``probe_id``, come at level ``debug``.
    """
    line = line.rstrip()
    if not line or line.startswith(_TABLE):
        return None
    match = _LINE.match(line)
    if match is None:
        level = "debug" if any(s in line for s in _EXPECTED_WITHOUT_GPU) else "info"
        return {"time": _now(), "level": level, "source": NOT_TRITONS, "message": line}
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
    if probe_id and fields.get("request_id") == probe_id:
        record["level"] = "debug"
    return {**record, **fields}


class Reader:
    """Turns a server's output, as it comes, into records; neither a long line nor many alike take room or time.

    Parameters
    ----------
    probe_id : str
        The request id of liveness probes.
    """

    def __init__(self, probe_id: str = "") -> None:
        self._probe_id = probe_id
        self._begun = b""
        self._cut_bytes = 0
        self._burst_end = 0.0
        self._alike: dict[bytes, int] = {}
        self._left_out: dict[bytes, dict[str, Any]] = {}

    def feed(self, output: bytes, now: float) -> Iterator[dict[str, Any]]:
        """The records of the lines that have ended, at ``now`` (seconds, any origin)."""
        yield from self.tick(now)
        *ended, rest = output.split(b"\n")
        for part in ended:
            self._extend(part)
            yield from self._record()
        self._extend(rest)

    def tick(self, now: float) -> Iterator[dict[str, Any]]:
        """What was left out of a burst, once that is over."""
        if now >= self._burst_end:
            yield from self._end_burst()
            self._burst_end = now + BURST_S

    def close(self) -> Iterator[dict[str, Any]]:
        """The records of what is left when the server has ended."""
        if self._begun:
            yield from self._record()
        yield from self._end_burst()

    def _extend(self, part: bytes) -> None:
        room = MOST_LINE_BYTES - len(self._begun)
        self._begun += part[:room]
        self._cut_bytes += max(0, len(part) - room)

    def _record(self) -> Iterator[dict[str, Any]]:
        line, cut_bytes, self._begun, self._cut_bytes = self._begun, self._cut_bytes, b"", 0
        stamp = _STAMP.match(line)
        words = line if stamp is None else line[: stamp.start(1)] + line[stamp.end() :]
        seen = self._alike[words] = self._alike.get(words, 0) + 1
        if words in self._left_out:
            self._left_out[words]["lines"] += 1
            return
        record = parse_line(line.decode(errors="replace"), self._probe_id)
        if record is None:
            return
        if seen > MOST_ALIKE:
            said = record.get("message", record.get("event"))
            self._left_out[words] = event(record["level"], "log_left_out", lines=1, message=said)
        else:
            yield {**record, "cut_bytes": cut_bytes} if cut_bytes else record
        if len(self._alike) > _MOST_DISTINCT:
            yield from self._end_burst()

    def _end_burst(self) -> Iterator[dict[str, Any]]:
        """How many lines of which words were not handed on; counting begins anew."""
        yield from self._left_out.values()
        self._alike, self._left_out = {}, {}


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
        elif record["level"] == "warning" or (record["source"] == NOT_TRITONS and record["level"] == "info"):
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
