"""What the engine's model does with requests: they wait, are run in batches, and answered. Knows nothing of Triton."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import m2ost_contract as contract
import numpy as np

from .engine import Engine
from .queueing import Cancelled, FairQueue

BATCH_ROWS_PARAMETER, BATCH_ROWS = "batch_rows", 32
"""Parameter of the config, and its default: rows that the engine runs at once, over all its runs at a time. Requests
are joined and cut to each run's share."""

SLICE_ROWS = 2
"""Rows of background work that are run at once while others ask: they wait for no more than that, or one more."""

OTHERS_S = 10.0
"""Others ask as long as the last of their requests came within this, in seconds."""


class Reply(Protocol):
    """The way back to a request's client; see :class:`m2ost_serving.replies.Reply`."""

    answered: bool

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""

    def expression(self, expression: Any) -> bool:
        """Answer: float32, shape (n, G)."""

    def error(self, error: Exception) -> bool:
        """Answer by an error."""


@dataclass(eq=False)
class _Request:
    """Rows to score, on the engine's device, and what is known of their values."""

    reply: Reply
    views: Mapping[str, Any]
    rows: int
    background: bool
    sender: str
    out: Any = None
    open_rows: int = field(init=False)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.open_rows = self.rows

    def fill(self, span: slice, expression: Any) -> None:
        """Values of some rows; with the last of them it is answered."""
        with self.lock:
            if self.out is None:
                self.out = np.empty((self.rows, *expression.shape[1:]), expression.dtype)
            self.out[span] = expression
            self.open_rows -= len(expression)
            whole = not self.open_rows
        if whole:
            self.reply.expression(self.out)

    def drop(self) -> bool:
        """Whether nothing more is to be done for it; where its client has gone it is answered so."""
        if self.reply.is_cancelled():
            self.reply.error(Cancelled("cancelled"))
        return self.reply.answered


@dataclass(eq=False)
class _Slice:
    """Neighbouring rows of a request, which are run at once."""

    request: _Request
    span: slice

    @property
    def rows(self) -> int:
        return int(self.span.stop - self.span.start)

    @property
    def sender(self) -> str:
        return self.request.sender

    @property
    def background(self) -> bool:
        return self.request.background

    @property
    def together(self) -> bool:
        """Background work is run with its kind alone, for whoever else asks not to wait for it."""
        return self.request.background


class Scoring:
    """Takes requests at once, or refuses them; runs the engine on them in turn, in a thread for each run at a time.

    Clients take turns, and background work goes last (:class:`m2ost_serving.queueing.FairQueue`).

    Parameters
    ----------
    engine : Engine
        Runs no more than ``batch_rows`` rows at once.
    batch_rows, waiting_rows : int
        See ``BATCH_ROWS`` and ``WAITING_ROWS``.
    tell_run, tell_waiting : callable
        Told of every run of the engine how many rows it had, and how long it took in seconds; told how many rows wait
        whenever that has changed. Neither may raise.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        batch_rows: int = BATCH_ROWS,
        waiting_rows: int = contract.WAITING_ROWS,
        tell_run: Callable[[int, float], None] = lambda rows, busy_s: None,
        tell_waiting: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._engine, self._batch_rows = engine, max(1, batch_rows // engine.runs)
        self._tell_run, self._tell_waiting = tell_run, tell_waiting
        self._queue: FairQueue[_Slice] = FairQueue(waiting_rows, size=lambda part: part.rows, unit="spots")
        self._changed = threading.Condition()
        self._others_until, self._background_runs = -math.inf, 0
        self._closed = False
        self._threads = [threading.Thread(target=self._run, name="engine", daemon=True) for _ in range(engine.runs)]
        for thread in self._threads:
            thread.start()

    def put(
        self, reply: Reply, views: Mapping[str, Any], rows: int, *, background: bool = False, sender: str = ""
    ) -> None:
        """Take on a request, which is answered later. One thread alone may call this.

        Parameters
        ----------
        reply : Reply
            Answered once, unless this raises.
        views : mapping of str to tensor of uint8, each shape (n, size_px, size_px, 3)
            Every view by its name (DLPack, in any memory); copied, so that they may go when this returns.
        rows : int
            n.
        background : bool
            Whether requests of others go first.
        sender : str
            Whose it is.

        Raises
        ------
        QueueFull
            If more rows would wait than may.
        """
        with self._changed:
            self._queue.check_room(rows, background=background)
        own = {name: self._engine.device.copy(tensor) for name, tensor in views.items()}
        request = _Request(reply, own, rows, background, sender)
        usual = min(SLICE_ROWS, self._batch_rows) if background else self._batch_rows
        spans = contract.spans(rows, usual, self._batch_rows)
        parts = [_Slice(request, span) for span in spans]
        with self._changed:
            if not background and sender != contract.PROBE_SENDER:
                self._others_until = time.monotonic() + OTHERS_S
            self._queue.put(parts)
            self._tell_waiting(self._queue.size)
            self._changed.notify_all()

    def close(self) -> None:
        """End it after what is being run. Requests that still wait are answered by nobody."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while taken := self._next():
            try:
                self._score(taken)
            except Exception as error:  # without an answer their clients would wait for ever
                for part in taken:
                    part.request.reply.error(error)
            if taken[0].background:
                with self._changed:
                    self._background_runs -= 1
                    self._changed.notify_all()

    def _next(self) -> list[_Slice]:
        """What is to be run next; empty once this is closed."""
        with self._changed:
            while not self._closed:
                self._queue.remove(lambda part: part.request.drop())
                taken = self._queue.take(self._rows_at_once, self._may_run)
                self._tell_waiting(self._queue.size)
                if taken:
                    self._background_runs += taken[0].background
                    return taken
                self._changed.wait()
            return []

    def _others_ask(self) -> bool:
        return time.monotonic() < self._others_until

    def _may_run(self, part: _Slice) -> bool:
        """While others ask, one of several runs is kept free of background work for them."""
        return not (part.background and self._others_ask()) or self._background_runs < max(1, self._engine.runs - 1)

    def _rows_at_once(self, first: _Slice) -> int:
        return SLICE_ROWS if first.background and self._others_ask() else self._batch_rows

    def _score(self, taken: list[_Slice]) -> None:
        # Neighbouring slices of a request are one again, so that rows which lie together are not copied.
        spans: list[tuple[_Request, slice]] = []
        for request, parts in groupby(taken, key=lambda part: part.request):
            for part in parts:
                if spans and spans[-1][0] is request and spans[-1][1].stop == part.span.start:
                    spans[-1] = (request, slice(spans[-1][1].start, part.span.stop))
                else:
                    spans.append((request, part.span))
        names = taken[0].request.views
        join = self._engine.device.join
        batch = {name: join([request.views[name][span] for request, span in spans]) for name in names}
        began = time.monotonic()
        try:
            expression = self._engine.run(batch)
        finally:
            self._tell_run(sum(part.rows for part in taken), time.monotonic() - began)
        start = 0
        for request, span in spans:
            stop = start + span.stop - span.start
            request.fill(span, expression[start:stop])
            start = stop
