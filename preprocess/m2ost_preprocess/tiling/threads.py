"""Threads that help the one that reads: they cut what it has read, and where they are idle they read along.

Decoders, Pillow's resizes and NumPy's copies let go of the interpreter.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from ..control_groups import cpus
from .spans import Spans

MOST_THREADS = 8
"""Threads that help where nobody asks for a number, at most."""

REGIONS_AT_ONCE = 2
"""Regions whose pixels wait to be cut or are being cut; a third is read meanwhile, and no fourth."""

Part = Callable[[], None]


class Helpers:
    """Runs the parts of regions: on threads of its own, or without any at once. For one thread that reads.

    There are ``threads`` beside the thread that reads; with 0 that one does all. ``spans`` is told of all cutting and
    of what is read along; whoever reads tells it of that.
    """

    def __init__(self, threads: int = 0, spans: Spans | None = None) -> None:
        self.threads, self.spans = threads, spans or Spans()
        self._pool = _started(threads) if threads else None
        self._regions: deque[list[Future[None]]] = deque()

    def cut(self, parts: Sequence[Part]) -> None:
        """Have the parts of a region run, in any order; returns while they do, once no more than two regions are cut.

        Parts keep the pixels that they need alive. Raises what a part of an earlier region raised; others may still
        run, until :meth:`finish`.
        """
        if self._pool is None:
            for part in parts:
                self._cut(part)
            return
        self._regions.append([self._pool.submit(self._cut, part) for part in parts])
        # Bounds the memory: the pixels of a region live until its last part has run.
        while len(self._regions) > REGIONS_AT_ONCE:
            wait(self._regions[0])
            _raise_first(self._regions.popleft())

    def finish(self) -> None:
        """Wait until all has been cut; raises what a part raised, once no part runs any more."""
        regions, self._regions = self._regions, deque()
        for region in regions:
            wait(region)
        for region in regions:
            _raise_first(region)

    def read(self, parts: Sequence[Part]) -> None:
        """Run the parts of one reading, on this thread and on those without anything to cut; returns when all have run.

        They may run in any order. Raises what a part raised; no part runs any more then, and some may not have run.
        """
        left = deque(parts)
        helping = [self._pool.submit(self._read_along, left) for _ in parts[1 : self.threads + 1]] if self._pool else []
        try:
            _run_all(left)
        finally:
            left.clear()
            # Those that still wait behind cutting are not needed any more.
            under_way = [future for future in helping if not future.cancel()]
            wait(under_way)
        _raise_first(under_way)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _cut(self, part: Part) -> None:
        with self.spans.span("cut"):
            part()

    def _read_along(self, left: deque[Part]) -> None:
        with self.spans.span("read"):
            _run_all(left)


def _run_all(left: deque[Part]) -> None:
    """Run what is left until others and this thread have taken all."""
    while True:
        try:
            part = left.popleft()
        except IndexError:
            return
        part()


def _started(threads: int) -> ThreadPoolExecutor:
    """A pool with all its threads: one that it failed to start later would leave a part that nobody waits for."""
    pool, together = ThreadPoolExecutor(threads, thread_name_prefix="helper"), threading.Barrier(threads)
    try:
        wait([pool.submit(together.wait) for _ in range(threads)])
    except BaseException:
        together.abort()
        raise
    return pool


def _raise_first(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()


def default_threads() -> int:
    """One for each CPU that this process may keep busy, eight at most."""
    return min(cpus(), MOST_THREADS)
