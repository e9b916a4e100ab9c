"""The process of a decoder, and the pipe to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..errors import PreprocessError, UnreadableSlide

_STOP_TIMEOUT_S = 2.0


class ChildLost(UnreadableSlide):
    """The process died on a slide, or was killed because it gave no answer."""


class Child:
    """A process that does one job after the other, as ``worker`` says; not thread-safe.

    Parameters
    ----------
    buffer_fd : int
        File descriptor of the memory that pixels come through. Stays open as long as this is used.
    threads : int
        How many read and cut along, beside the one that reads.
    """

    def __init__(self, buffer_fd: int, threads: int) -> None:
        self._buffer_fd, self._threads = buffer_fd, threads
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id, or None where none lives."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process if none lives.

        Raises
        ------
        OSError
            If the system grants none.
        """
        if self._pipe is not None and self.pid is not None:
            return
        self.stop()
        ours, theirs = socket.socketpair()
        self._pipe = Connection(ours.detach())
        with theirs:
            numbers = theirs.fileno(), self._buffer_fd, self._threads
            self._process = subprocess.Popen(
                [_python(), "-P", "-m", f"{__package__}.worker", *map(str, numbers)],
                pass_fds=numbers[:2],
                # Else each of its threads keeps what it freed: half as much again as is in use, more with more threads.
                env={"MALLOC_ARENA_MAX": "1", **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def ask(self, job: object, path: Path, timeout_s: float) -> Any:
        """Send a job, and wait for its answer.

        Parameters
        ----------
        job : object
            One of ``protocol``'s.
        path : Path
            The slide that it is about.
        timeout_s : float
            Longest time in seconds.

        Raises
        ------
        PreprocessError
            What the process answered; or ``ChildLost``.
        """
        assert self._pipe is not None, "start it first"
        try:
            self._pipe.send(job)
            if not self._pipe.poll(timeout_s):
                raise ChildLost(path.name, f"its reader did not answer within {timeout_s:g} s and was stopped")
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise ChildLost(path.name, f"its reader crashed ({self.stop()}); the file is likely damaged") from error
        except BaseException:
            # The answer may still come, and the next job would take it for its own.
            self.stop()
            raise
        if isinstance(answer, PreprocessError):
            raise answer
        return answer

    def stop(self) -> str:
        """End the process; in words, how it ended."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is None:
            return "never started"
        try:
            # It leaves once the pipe is closed; one that is stopped, or waits for a dead disk, does not.
            code = self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            try:
                code = self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                return "does not end"
        finally:
            self._process = None
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _python() -> str:
    """The interpreter of this environment; inside Triton's stub ``sys.executable`` is not one."""
    candidate = Path(sys.prefix) / "bin" / "python3"
    return str(candidate) if candidate.exists() else sys.executable
