"""What a decoder's threads did when, for a timeline."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from m2ost_contract import ENV_DECODER_TRACE


class Spans:
    """A file that gets a line of JSON for every span: ``lane``, ``name``, ``start_ns``, ``end_ns``.

    The clock is ``CLOCK_MONOTONIC``; a lane is a thread. Processes may share the file: a line is written by one call.

    Parameters
    ----------
    path : Path, optional
        Without it nothing is noted.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if path else None

    @classmethod
    def from_environment(cls) -> Spans:
        """In the file that the environment variable ``M2OST_DECODER_TRACE`` names, if it names one."""
        path = os.environ.get(ENV_DECODER_TRACE)
        return cls(Path(path) if path else None)

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Note what is done within, done or failed."""
        began = time.monotonic_ns()
        try:
            yield
        finally:
            if self._fd is not None:
                lane = f"decoder {os.getpid()} {threading.current_thread().name}"
                line = json.dumps({"lane": lane, "name": name, "start_ns": began, "end_ns": time.monotonic_ns()})
                with contextlib.suppress(OSError):  # a full disk costs a timeline, and no spot
                    os.write(self._fd, f"{line}\n".encode())
