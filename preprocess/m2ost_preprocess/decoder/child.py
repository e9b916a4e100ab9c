"""The process of a decoder, and the pipe to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..contract import ENV_DECODER_MEMORY_MIB
from ..errors import PreprocessError, UnreadableSlide
from .memory import ceiling_mib, has_outgrown

_STOP_TIMEOUT_S = 2.0


class ChildLost(UnreadableSlide):
    """The process died on a slide, or was killed because it gave no answer."""


class ChildCrashed(ChildLost):
    """A native library ended the process."""


_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGTRAP, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


class Child:
    """A process that does one job after the other, as ``worker`` says; not thread-safe.

    Parameters
    ----------
    buffer_fd : int
        File descriptor of the memory that pixels come through. Stays open as long as this is used.
    threads : int
        How many read and cut along, beside the one that reads.
    environment : mapping of str to str
        Variables of the process's environment, in place of this process's.
    """

    def __init__(self, buffer_fd: int, threads: int, environment: Mapping[str, str]) -> None:
        self._buffer_fd, self._threads, self._environment = buffer_fd, threads, environment
        self._ceiling_mib = ceiling_mib({**os.environ, **environment})
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id, or None where none lives."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process if none lives, or the one that does has outgrown its ceiling.

        Raises
        ------
        OSError
            If the system grants none.
        """
        pid = self.pid
        if self._pipe is not None and pid is not None and not has_outgrown(pid, self._ceiling_mib):
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
                env={"MALLOC_ARENA_MAX": "1", **os.environ, **self._environment},
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
            What the process answered; or ``ChildLost``, of which ``ChildCrashed`` is one.
        """
        assert self._pipe is not None, "start it first"
        try:
            self._pipe.send(job)
            if not self._pipe.poll(timeout_s):
                raise ChildLost(path.name, f"its reader did not answer within {timeout_s:g} s and was stopped")
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            code = self.stop()
            # A native library may also end the process by its exit: libjpeg does where memory runs out.
            if code is not None and (code > 0 or -code in _CRASHES):
                words = f"its reader crashed ({_in_words(code).removeprefix('ended by ')}); the file is likely damaged"
                if self._ceiling_mib:
                    words += f", or needs more than the {self._ceiling_mib} MiB of {ENV_DECODER_MEMORY_MIB}"
                raise ChildCrashed(path.name, words) from error
            raise ChildLost(path.name, f"its reader was lost ({_in_words(code)}); ask again") from error
        except BaseException:
            # The answer may still come, and the next job would take it for its own.
            self.stop()
            raise
        if isinstance(answer, PreprocessError):
            raise answer
        return answer

    def stop(self) -> int | None:
        """End the process; its exit status, or None where there was none or it does not end."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is None:
            return None
        try:
            # It leaves once the pipe is closed; one that is stopped, or waits for a dead disk, does not.
            return self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(_STOP_TIMEOUT_S)
            return None
        finally:
            self._process = None


def _in_words(code: int | None) -> str:
    if code is None:
        return "it does not end"
    if -code == signal.SIGKILL:
        return "killed, by somebody or for want of memory"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _python() -> str:
    """The interpreter of this environment; inside Triton's stub ``sys.executable`` is not one."""
    candidate = Path(sys.prefix) / "bin" / "python3"
    return str(candidate) if candidate.exists() else sys.executable
