"""A system that is timed, in a process of its own and those that it starts, under a memory cap."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import psutil
from m2ost_loadtests.errors import MemoryCapExceeded, SystemDied

from ..process_memory import MIB

POLL_S = 0.02
"""How often a process's memory is looked at, in seconds."""


class System(Protocol):
    """What is timed. Picklable: it is opened in the process that runs it."""

    def open(self) -> Callable[[], Any]:
        """Load everything; returns what does the work once and says what it did, picklable."""


@dataclass(frozen=True)
class Run:
    """One run of a system.

    Parameters
    ----------
    result : object
        What the system said.
    peak_bytes : int
        Peak resident memory of its process and of those that it started, so far: the sum of their peaks.
    """

    result: Any
    peak_bytes: int


_opened: Callable[[], Any] | None = None  # in the child: the system, once open


def _open(system: System) -> list[int]:
    """Open it; ids of the processes that it started."""
    global _opened
    _opened = system.open()
    return [process.pid for process in psutil.Process().children(recursive=True)]


def _run() -> Run:
    assert _opened is not None
    return Run(_opened(), peak_rss_bytes())


def peak_rss_bytes() -> int:
    """Peak resident memory of this process and of those that it started, each since its start, summed, in bytes."""
    started = psutil.Process().children(recursive=True)
    return sum(_peak_rss_bytes(pid) for pid in (os.getpid(), *(process.pid for process in started)))


def _peak_rss_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


class CappedProcess:
    """A process that holds one system and is ended as soon as it outgrows its cap; a context manager.

    Parameters
    ----------
    system : System
        Opened at once.
    cap_bytes : int, optional
        Most resident memory of the process and of those that it starts, libraries and pixels included. What they
        share counts once for each.

    Raises
    ------
    MemoryCapExceeded
        If opening the system takes more than ``cap_bytes``.
    """

    def __init__(self, system: System, *, cap_bytes: int | None = None) -> None:
        self._cap_bytes = cap_bytes
        # Spawned, not forked: a fork would begin with the memory of its parent.
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._process = psutil.Process(self._pool.submit(os.getpid).result())
        self._started: list[psutil.Process] = []
        try:
            self._started = [psutil.Process(pid) for pid in self._wait(self._pool.submit(_open, system))]
        except BaseException:
            self.close()
            raise

    def run(self) -> Run:
        """Run the system once.

        Raises
        ------
        MemoryCapExceeded
            If the process has at any time held more than the cap.
        SystemDied
            If the process died of something else.
        """
        run: Run = self._wait(self._pool.submit(_run))
        if self._cap_bytes is not None and run.peak_bytes > self._cap_bytes:
            raise self._exceeded(run.peak_bytes)
        return run

    def _wait(self, future: Future[Any]) -> Any:
        while not future.done():
            with suppress(TimeoutError):
                future.exception(timeout=POLL_S)
            if self._cap_bytes is not None and (found := self._resident_bytes()) > self._cap_bytes:
                self._process.kill()
                raise self._exceeded(found)
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise SystemDied("the process of a system that was being timed died (out of memory?)") from error

    def _resident_bytes(self) -> int:
        try:
            return sum(int(process.memory_info().rss) for process in (self._process, *self._started))
        except psutil.NoSuchProcess:
            return 0

    def _exceeded(self, found: int) -> MemoryCapExceeded:
        assert self._cap_bytes is not None
        return MemoryCapExceeded(f"{found / MIB:.0f} MiB resident, the cap is {self._cap_bytes / MIB:.0f} MiB")

    def close(self) -> None:
        """End the process."""
        with suppress(psutil.NoSuchProcess):
            self._process.kill()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> CappedProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
