"""What ``slide_tiler`` does with requests: they wait, are cut slide by slide, and answered. Knows nothing of Triton."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from m2ost_contract import RowStatus
from m2ost_preprocess.decoder.child import Limits
from m2ost_preprocess.errors import PreprocessError, SlideTimeout, answered
from m2ost_preprocess.slides import RootedSlide, SlideRoots
from m2ost_preprocess.tiling.tiles import TilingCounts
from m2ost_preprocess.tiling.views import Centers, Scales, Statuses

from .lanes import Lanes, Room
from .queueing import TooLate, why_dropped
from .stalls import Stalls
from .tiler import Tiler

BUDGET_S = 110.0
"""Longest time for cutting a request, in seconds, where its client names no limit. A client of this project waits for
120 s by default."""

RETURN_S = 5.0
"""Within this a ticket comes back, in seconds; nobody waits for the views otherwise. It takes about a millisecond."""

TICKET_LOST = "no such ticket, or it came back too late; send the request again"

GRACE_S = 10.0
"""After its budget a request's region under way may end within this, before the process that reads it is ended."""

JOINED_ROWS_PARAMETER, JOINED_ROWS = "joined_rows", 32
"""Parameter of the config, and its default: rows of one slide that are cut together. The engine starts on them while
the next are cut."""

MOST_WAITING = 64
"""Requests that may wait for the tiler. They hold names and coordinates alone."""


class Reply(Protocol):
    """The way back to a request's client; see :class:`m2ost_serving.replies.Reply`."""

    def ticket(self, ticket: int, rows: int) -> bool:
        """Answer that the request's turn has come; whoever still wants the views asks for them by this number."""

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""

    def views(self, views: Sequence[Any], statuses: Any, facts: dict[str, Any]) -> bool:
        """Answer: an array (n, size_px, size_px, 3) a view, statuses (n, 1), and what the log tells of it."""

    def error(self, error: Exception) -> bool:
        """Answer by an error."""


@dataclass(eq=False)
class TilingRequest:
    """Spots to cut, of one slide or of several.

    Parameters
    ----------
    reply : Reply
        Answered once.
    names : sequence of str, length n
        The slide of every spot, as the client names it.
    centers : ndarray of int32, shape (n, 2)
        x, y: floor of the spot's centre in level-0 pixels.
    scales : ndarray of float32, shape (n,)
        Level-0 pixels per view pixel of the finest view.
    pyramid, background : bool
        Whether views may come from lower levels; whether other work goes first.
    sender : str
        Whose it is.
    budget_s : float
        Longest time for cutting it in seconds.
    by_ticket : bool
        Whether ``reply`` is answered by a ticket, for which the views are asked for anew.
    """

    reply: Reply
    names: Sequence[str]
    centers: Centers
    scales: Scales
    pyramid: bool = False
    background: bool = False
    sender: str = ""
    budget_s: float = BUDGET_S
    by_ticket: bool = False
    called: threading.Event | None = None
    arrived: float = field(default_factory=time.monotonic)
    until: float | None = None
    out: list[Any] | None = None
    statuses: Any = None
    errors: dict[str, PreprocessError] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)
    open_parts: int = 0
    answered: bool = False
    sent: Callable[[int, bool], None] = lambda rows, background: None
    failed: Callable[[Exception], None] = lambda error: None

    @property
    def away(self) -> bool:
        """Whether it was answered by a ticket that has not come back: nobody can be asked or answered meanwhile."""
        return self.called is not None and not self.called.is_set()

    def redeem(self, reply: Reply) -> None:
        """Its ticket has come back: the views are answered to this.

        Raises
        ------
        TooLate
            If it was given up meanwhile.
        """
        assert self.called is not None
        with self.lock:
            if self.answered:
                raise TooLate(TICKET_LOST)
            self.reply, self.by_ticket = reply, False
            self.called.set()

    def give_up(self) -> None:
        """Expect its ticket no more."""
        with self.lock:
            self.answered = self.answered or self.away

    def begin(self) -> None:
        """Its first spots are about to be cut."""
        if self.until is None:
            self.until = time.monotonic() + self.budget_s

    def buffers(self, tiler: Tiler) -> list[Any]:
        """Where the views of all its spots lie, whichever lanes cut them."""
        with self.lock:
            if self.out is None:
                self.out = tiler.buffers(len(self.names))
            return self.out

    @property
    def left_s(self) -> float:
        """What is left of its budget in seconds."""
        return self.budget_s if self.until is None else max(0.0, self.until - time.monotonic())

    def drop(self) -> bool:
        """See :meth:`m2ost_serving.lanes.Task.drop`."""
        if self.answered or self.away:
            return self.answered
        arrived = self.arrived if self.until is None else math.inf  # what has begun waits no more
        error = why_dropped(self.names[0], cancelled=self.reply.is_cancelled(), arrived=arrived)
        if error is not None:
            self.end(error)
        return self.answered

    def end(self, error: Exception | None = None) -> None:
        """Answer, unless it is answered."""
        with self.lock:
            if self.answered:
                return
            self.answered = True
        if error is None and all(name in self.errors for name in self.names):
            error = self.errors[self.names[0]]
        for of_a_slide in self.errors.values():
            if of_a_slide is not error:
                self.failed(of_a_slide)
        if error is not None:
            self.reply.error(error)
            return
        names = sorted(set(self.names))
        facts = {
            "slides": names,
            "rows": len(self.names),
            "rows_without_value": int(np.count_nonzero(self.statuses)),
            "errors": [str(self.errors[name]) for name in names if name in self.errors],
            "waited_s": round((self.until or self.arrived) - self.budget_s - self.arrived, 4),
        }
        if self.called is not None:  # views asked for alone go to no engine
            self.sent(int(np.count_nonzero(self.statuses == RowStatus.OK)), self.background)
        self.reply.views(self.out or (), self.statuses.reshape(-1, 1), facts)


@dataclass(eq=False)
class Part:
    """The spots of a request that lie on one slide."""

    request: TilingRequest
    source: str
    slide: RootedSlide
    index: Any
    given_up: bool = False

    @property
    def rows(self) -> int:
        """Spots of it."""
        return len(self.index)

    @property
    def sender(self) -> str:
        """Whose it is."""
        return self.request.sender

    @property
    def background(self) -> bool:
        """Whether other work goes first."""
        return self.request.background

    @property
    def root(self) -> str:
        """Name of the slide's root."""
        return self.slide.root

    @property
    def together(self) -> Hashable | None:
        """A request of one slide may be cut with others of that slide; they share regions."""
        return (self.slide, self.request.pyramid) if self.rows == len(self.request.names) else None

    def drop(self) -> bool:
        """See :meth:`m2ost_serving.lanes.Task.drop`."""
        return self.request.drop()

    def fail(self, error: Exception) -> None:
        """No row of it has views."""
        self.request.errors[self.source] = answered(self.slide.name, error)
        self.done(None)

    def done(self, statuses: Statuses | None) -> None:
        """Note statuses, None where it has failed; the last part answers the request."""
        request = self.request
        with request.lock:
            request.statuses[self.index] = RowStatus.SLIDE_UNAVAILABLE if statuses is None else statuses
            request.open_parts -= 1
            last = request.open_parts == 0
        if last:
            request.end()

    def is_wanted(self) -> bool:
        """Whether somebody waits for it, and there is time left for it; not any more once it was not."""
        self.given_up = self.given_up or self.request.left_s <= 0 or self.request.reply.is_cancelled()
        return not self.given_up


class _Tickets:
    """Requests whose turn has come, until their tickets come back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._called: dict[int, TilingRequest] = {}

    def call(self, requests: Sequence[TilingRequest]) -> None:
        """Answer requests by tickets, and wait until these have come back; those that do not are answered for good."""
        called = {}
        for request in requests:
            with self._lock, request.lock:
                if request.by_ticket and request.called is None:
                    ticket = secrets.randbits(63)
                    request.called = threading.Event()
                    called[ticket] = self._called[ticket] = request
        for ticket, request in called.items():
            request.reply.ticket(ticket, len(request.names))
        until = time.monotonic() + RETURN_S
        for request in requests:
            if request.called is not None and not request.called.wait(max(0.0, until - time.monotonic())):
                request.give_up()
        with self._lock:
            for ticket in called:
                self._called.pop(ticket, None)

    def take(self, ticket: int) -> TilingRequest | None:
        """The request of a ticket, once."""
        with self._lock:
            return self._called.pop(ticket, None)


class _Cutter:
    """Cuts the parts of a lane."""

    def __init__(
        self,
        tiler: Tiler,
        count: Callable[[TilingCounts, Tiler], None],
        stalls: Stalls,
        tickets: _Tickets,
    ) -> None:
        self._tiler, self._count, self._stalls, self._tickets = tiler, count, stalls, tickets

    def do(self, parts: list[Part]) -> None:
        """Cut parts of one slide, and answer the requests that are whole."""
        parts = [part for part in parts if not part.drop()]
        self._tickets.call([part.request for part in parts])
        parts = [part for part in parts if not part.drop()]
        if not parts:
            return
        slide, first = parts[0].slide, parts[0].request
        ends = np.cumsum([part.rows for part in parts]).tolist()
        spans = [slice(end - part.rows, end) for part, end in zip(parts, ends, strict=True)]
        if len(parts) == 1:
            out, rows = first.buffers(self._tiler), parts[0].index
        else:
            out, rows = self._tiler.buffers(ends[-1]), np.arange(ends[-1])
        for part in parts:
            part.request.begin()

        def unwanted() -> list[int]:
            return [row for part, span in zip(parts, spans, strict=True) if not part.is_wanted() for row in _rows(span)]

        counts, failure, statuses = TilingCounts(), None, None
        try:
            self._stalls.check(slide)
            statuses = self._tiler.cut_views(
                slide,
                np.concatenate([part.request.centers[part.index] for part in parts]),
                np.concatenate([part.request.scales[part.index] for part in parts]),
                out,
                rows,
                counts,
                pyramid=first.pyramid,
                limits=Limits(max(part.request.left_s for part in parts) + GRACE_S, unwanted=unwanted),
            )
        except Exception as error:
            self._stalls.note(slide, error)
            failure = answered(slide.name, error)
        self._count(counts, self._tiler)
        for part, span in zip(parts, spans, strict=True):
            if len(parts) > 1:
                part.request.out = [array[span] for array in out]
            if part.request.drop():
                continue
            if part.given_up:
                budget_s = part.request.budget_s
                late = f"not all of its spots were cut within {budget_s:g} s; ask for fewer spots a request"
                part.fail(SlideTimeout(slide.name, late))
            elif statuses is None:
                assert failure is not None
                part.fail(failure)
            else:
                part.done(statuses[span])

    def close(self) -> None:
        """End the tiler."""
        self._tiler.close()
        self._count(TilingCounts(), self._tiler)


class Tiling:
    """Takes requests at once, or refuses them; cuts and answers them in turn.

    Parameters
    ----------
    roots : SlideRoots
        Where slides are.
    tiler : callable
        Makes the tiler of a lane; see :class:`m2ost_serving.lanes.Lanes`.
    count : callable
        Told what cutting took, and which tiler did it; and once that has been closed.
    joined_rows : int
        Rows of one slide that are cut together.
    room, tell_waiting : callable
        See :class:`m2ost_serving.lanes.Lanes`.
    sent : callable
        Told how many rows with views are about to go on to the engine, and whether they are background work.
    failed : callable
        Told every error about a slide but that by which its request is answered.
    """

    def __init__(
        self,
        roots: SlideRoots,
        tiler: Callable[[bool, int], Tiler],
        *,
        count: Callable[[TilingCounts, Tiler], None],
        joined_rows: int = JOINED_ROWS,
        room: Callable[[], Room] = lambda: (True, True),
        sent: Callable[[int, bool], None] = lambda rows, background: None,
        failed: Callable[[Exception], None] = lambda error: None,
        tell_waiting: Callable[[int], None] = lambda tasks: None,
    ) -> None:
        self._roots, self._stalls, self._tickets = roots, Stalls(), _Tickets()
        self._sent, self._failed = sent, failed
        self._lanes: Lanes[Part] = Lanes(
            lambda *place: _Cutter(tiler(*place), count, self._stalls, self._tickets),
            rows=joined_rows,
            most_waiting=MOST_WAITING,
            room=room,
            tell_waiting=tell_waiting,
        )

    def put(self, request: TilingRequest) -> None:
        """Take on a request, which is answered later or, where all its slides are refused, at once.

        Raises
        ------
        QueueFull
            If as many wait as may.
        """
        request.statuses = np.full(len(request.names), RowStatus.SLIDE_UNAVAILABLE, np.int32)
        request.sent, request.failed = self._sent, self._failed
        parts, rows_of = [], dict[str, list[int]]()
        # Not by NumPy, for which a name that ends with \0 equals none, not even itself.
        for row, name in enumerate(request.names):
            rows_of.setdefault(name, []).append(row)
        for source, rows in rows_of.items():
            try:
                slide = self._roots.locate(source)
                self._stalls.check(slide)
            except PreprocessError as error:
                request.errors[source] = error
                continue
            parts.append(Part(request, source, slide, np.array(rows)))
        request.open_parts = len(parts)
        if parts:
            self._lanes.put(parts)
        else:
            request.end()

    def redeem(self, ticket: int, reply: Reply) -> None:
        """Take a ticket back: the views of its request are answered to ``reply``.

        Raises
        ------
        TooLate
            If there is no such ticket, or not any more.
        """
        request = self._tickets.take(ticket)
        if request is None:
            raise TooLate(TICKET_LOST)
        request.redeem(reply)

    @property
    def waiting(self) -> int:
        """Requests' parts that wait."""
        return self._lanes.waiting

    def close(self) -> None:
        """End it after what is being cut."""
        self._lanes.close()


def _rows(span: slice) -> range:
    return range(span.start, span.stop)
