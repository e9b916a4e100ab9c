"""The process of a decoder, and the pipe to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from m2ost_contract import ENV_DECODER_MEMORY_MIB

from ..errors import PreprocessError, SlideTimeout, UnreadableSlide
from .control import Control
from .memory import ceiling_mib, has_outgrown

STALL_S = 60.0
"""A process that shows no progress for this long is stopped, in seconds. The longest step without a sign is to decode
an image that is not tiled, of a gigapixel at most."""

POLL_S = 0.1
"""How often a parent that waits looks for whom it waits, in seconds."""

_STOP_TIMEOUT_S = 2.0


class ChildLost(UnreadableSlide):
    """The process died on a slide."""


class ChildCrashed(ChildLost):
    """A native library ended the process."""


class ChildStalled(SlideTimeout):
    """The process showed no progress, and was stopped."""


class FilesStalled(ChildStalled):
    """It waited for the file system to tell of the slide's files."""


def _nothing() -> Sequence[int]:
    """All rows are wanted."""
    return ()


@dataclass(frozen=True)
class Limits:
    """How long a job may take, and for which of its rows it is done.

    Parameters
    ----------
    within_s : float
        Seconds from now after which the process is stopped, however far it is.
    stall_s : float
        Seconds without progress after which it is stopped.
    unwanted : callable
        Gives the rows that nobody waits for any more; asked every ``POLL_S`` seconds while the job is done.
    until : float, optional
        When ``within_s`` ends, by ``time.monotonic``; see :meth:`begun`.
    """

    within_s: float
    stall_s: float = STALL_S
    unwanted: Callable[[], Sequence[int]] = _nothing
    until: float | None = None

    def begun(self) -> Limits:
        """The same for all parts of a job that begins now."""
        return replace(self, until=time.monotonic() + self.within_s)


_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGTRAP, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


class Child:
    """A process that does one job after the other, as ``worker`` says; not thread-safe.

    It inherits the file descriptors of the memory that pixels come through and of ``control``, which stay open as long
    as this is used. ``threads`` read and cut along, beside the one that reads; ``environment`` replaces variables of
    ours.
    """

    def __init__(
        self, buffer_fd: int, control_fd: int, control: Control, threads: int, environment: Mapping[str, str]
    ) -> None:
        self._buffer_fd, self._control_fd, self._threads = buffer_fd, control_fd, threads
        self._environment = environment
        self._control = control
        self._ceiling_mib = ceiling_mib({**os.environ, **environment})
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id, or None where none lives."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process if none lives or it has outgrown its ceiling; ``OSError`` if the system grants none."""
        pid = self.pid
        if self._pipe is not None and pid is not None and not has_outgrown(pid, self._ceiling_mib):
            return
        self.stop()
        ours, theirs = socket.socketpair()
        self._pipe = Connection(ours.detach())
        with theirs:
            numbers = theirs.fileno(), self._buffer_fd, self._control_fd, self._threads
            self._process = subprocess.Popen(
                [_python(), "-P", "-m", f"{__package__}.worker", *map(str, numbers)],
                pass_fds=numbers[:3],
                # Else each of its threads keeps what it freed: half as much again as is in use, more with more threads.
                env={"MALLOC_ARENA_MAX": "1", **os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def ask(self, job: object, name: str, limits: Limits) -> Any:
        """The answer to one of ``protocol``'s jobs, about the slide of that name.

        Raises the ``PreprocessError`` that the process answered; or ``ChildLost``, of which ``ChildCrashed`` is one, or
        a ``SlideTimeout``.
        """
        assert self._pipe is not None, "start it first"
        try:
            self._pipe.send(job)
            self._wait(self._pipe, name, limits)
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            code = self.stop()
            # A native library may also end the process by its exit: libjpeg does where memory runs out.
            if code is not None and (code > 0 or -code in _CRASHES):
                words = f"its reader crashed ({_in_words(code).removeprefix('ended by ')}); the file is likely damaged"
                if self._ceiling_mib:
                    words += f", or needs more than the {self._ceiling_mib} MiB of {ENV_DECODER_MEMORY_MIB}"
                raise ChildCrashed(name, words) from error
            raise ChildLost(name, f"its reader was lost ({_in_words(code)}); ask again") from error
        except BaseException:
            # The answer may still come, and the next job would take it for its own.
            self.stop()
            raise
        if isinstance(answer, PreprocessError):
            raise answer
        return answer

    def _wait(self, pipe: Connection, name: str, limits: Limits) -> None:
        """Return once there is an answer, or raise why nobody waits any longer."""
        now = alive = time.monotonic()
        until, beats = limits.until or now + limits.within_s, self._control.beats
        while not pipe.poll(max(0.0, min(POLL_S, until - now))):
            now = time.monotonic()
            if self._control.beats != beats:
                beats, alive = self._control.beats, now
            if now >= until:
                raise SlideTimeout(name, f"its reader did not answer within {limits.within_s:g} s and was stopped")
            if now - alive >= limits.stall_s:
                if self._control.at_files:
                    raise FilesStalled(name, f"its file system did not answer within {limits.stall_s:g} s; ask later")
                raise ChildStalled(name, f"its reader got no further for {limits.stall_s:g} s and was stopped")
            self._control.give_up(limits.unwanted())

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
