"""Threads that cut regions while the next is read, and a note of when either ran.

Reading stays on the thread that asks for it: native libraries tell of damage on standard output, and what they say
belongs to the slide that one thread reads. Pillow and NumPy let go of the interpreter while they work on pixels.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from .contract import ENV_DECODER_TRACE

THREADS_PARAMETER = "cut_threads"
"""Parameter of the config of ``slide_tiler``: threads that cut, a number or ``all``."""

REGIONS_AT_ONCE = 2
"""Regions whose pixels wait to be cut or are being cut; a third is read meanwhile, and no fourth."""

Part = Callable[[], None]


class SpanFile:
    """A file that gets a line of JSON for every span: ``lane``, ``name``, ``start_ns``, ``end_ns``.

    The clock is ``CLOCK_MONOTONIC``; a lane is a thread. Processes may share the file: each line is written by one call.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, name: str, start_ns: int, end_ns: int) -> None:
        """Add a span of this thread."""
        lane = f"decoder {os.getpid()} {threading.current_thread().name}"
        line = json.dumps({"lane": lane, "name": name, "start_ns": start_ns, "end_ns": end_ns})
        os.write(self._fd, f"{line}\n".encode())


class Cutters:
    """Runs the parts of regions: on threads of its own, or without any at once. For one thread that reads.

    Parameters
    ----------
    threads : int
        How many cut beside the thread that reads; 0: that one does.
    spans : SpanFile, optional
        Told of all reading and cutting.
    """

    def __init__(self, threads: int = 0, spans: SpanFile | None = None) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cut") if threads else None
        self._spans = spans
        self._regions: deque[list[Future[None]]] = deque()

    @classmethod
    def from_environment(cls, threads: int) -> Cutters:
        """With the file of spans that the environment variable ``M2OST_DECODER_TRACE`` names, if it does."""
        path = os.environ.get(ENV_DECODER_TRACE)
        return cls(threads, SpanFile(Path(path)) if path else None)

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Note what is done within."""
        began = time.monotonic_ns()
        yield
        if self._spans is not None:
            self._spans.add(name, began, time.monotonic_ns())

    def cut(self, parts: Iterable[Part]) -> None:
        """Have the parts of a region run, in any order; returns while they do, once no more than two regions are cut.

        Parameters
        ----------
        parts : iterable of callable
            They keep the pixels that they need alive.
        """
        if self._pool is None:
            for part in parts:
                self._run(part)
            return
        self._regions.append([self._pool.submit(self._run, part) for part in parts])
        while len(self._regions) > REGIONS_AT_ONCE:
            _result(self._regions.popleft())

    def finish(self) -> None:
        """Wait until all has been cut.

        Raises
        ------
        Exception
            What a part raised; no part runs any more.
        """
        regions, self._regions = self._regions, deque()
        wait([future for region in regions for future in region])
        for region in regions:
            _result(region)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _run(self, part: Part) -> None:
        with self.span("cut"):
            part()


def _result(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()


def thread_count(given: str) -> int:
    """Threads that a config or a command line asks for.

    Parameters
    ----------
    given : str
        A number from 0 on, or ``all``: one for each core of this process's CPU set.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if given == "all":
        return len(os.sched_getaffinity(0))
    if not given.isdecimal():
        raise ValueError(f"parameter {THREADS_PARAMETER} of slide_tiler must be 0, 1, 2, … or all, not {given!r}")
    return int(given)
