"""Work on slides that never waits for one slow slide: a lane does it in turn, and others help while that is held up.

Nor does it wait for background work, which has lanes of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from m2ost_contract import ENV_DECODER_NICE

from .queueing import Entry, FairQueue

SLOW_S = 2.0
"""A lane that has done the same work for so long no longer holds others up, in seconds: another lane takes them."""

MOST_LANES = 6
"""Of background work, and of other work."""

MOST_LANES_A_ROOT = 3
"""Of either, slides of one root may be slow in so many lanes at a time: a root whose file system hangs leaves lanes to
others."""

SPARE_IDLE_S = 30.0
"""A further lane that has had nothing to do for so long is ended, in seconds."""

_TICK_S = 0.25
_ASK_AGAIN_S = 0.02


class Task(Entry, Protocol):
    """Work on one slide.

    Attributes
    ----------
    slide : hashable
        Work on one slide is done in one lane at a time.
    root : str
        Name of the slide's root.
    """

    @property
    def slide(self) -> Hashable: ...
    @property
    def root(self) -> str: ...

    def drop(self) -> bool:
        """Answer it where nobody waits for it any more, or it has waited too long; returns whether it is answered."""
        ...

    def fail(self, error: Exception) -> None:
        """Answer it by an error."""


BACKGROUND_NICE = 10
"""How far processes that decode for background work give way: beside a busy one Linux leaves them a tenth of a core."""


def decoder_environment(background: bool) -> dict[str, str]:
    """Environment of the process that decodes for a lane."""
    return {ENV_DECODER_NICE: str(BACKGROUND_NICE)} if background else {}


T = TypeVar("T", bound=Task)
Place = tuple[bool, int]
"""Whether a lane does background work, and its number among those of its kind."""

Room = tuple[bool, bool]
"""Whether there is room for work, and whether there is for background work."""


class Worker(Protocol[T]):
    """What does the work of a lane, in the lane's thread."""

    def do(self, tasks: list[T]) -> None:
        """Do and answer tasks of one slide."""

    def close(self) -> None:
        """End it."""


@dataclass(eq=False)
class _Lane(Generic[T]):
    """A thread, what it does now, and since when it has done that or nothing."""

    tasks: list[T]
    since: float


class Lanes(Generic[T]):
    """Does tasks in lanes: a first that lives as long as this, and further ones for what need not wait for it.

    Parameters
    ----------
    worker : callable
        Makes the worker of a lane. It is given whether the lane does background work, and the lane's number; the first
        lane's, number 0 for other work, is made at once.
    rows : int
        Rows of one slide that are done together.
    most_waiting : int
        Tasks that may wait.
    room : callable
        Whether what comes after this has room for more work, and for more background work. It is asked in the lanes'
        threads, and may take a moment.
    tell_waiting : callable
        Told how many tasks wait whenever that has changed; may not raise.
    """

    def __init__(
        self,
        worker: Callable[[bool, int], Worker[T]],
        *,
        rows: int,
        most_waiting: int,
        room: Callable[[], Room] = lambda: (True, True),
        tell_waiting: Callable[[int], None] = lambda tasks: None,
    ) -> None:
        self._tell_waiting = tell_waiting
        self._make, self._rows, self._room = worker, rows, room
        self._queue: FairQueue[T] = FairQueue(most_waiting)
        self._changed = threading.Condition()
        self._lanes: dict[Place, _Lane[T]] = {}
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._add_lane(_FIRST, worker(*_FIRST))
        threading.Thread(target=self._watch, name="lanes", daemon=True).start()

    def put(self, tasks: list[T]) -> None:
        """Take on the tasks of a request, all or none.

        Raises
        ------
        QueueFull
            If as many wait as may.
        """
        with self._changed:
            self._queue.put(tasks)
            self._tell_waiting(len(self._queue))
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Tasks that wait."""
        with self._changed:
            return len(self._queue)

    def close(self) -> None:
        """End all lanes after what they do now. Tasks that still wait are answered by nobody."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in tuple(self._threads):
            thread.join()

    def _add_lane(self, place: Place, worker: Worker[T] | None = None) -> None:
        self._lanes[place] = _Lane([], time.monotonic())
        thread = threading.Thread(target=self._run, args=(place, worker), name=f"lane-{place[1]}", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _run(self, place: Place, worker: Worker[T] | None) -> None:
        lane = self._lanes[place]
        try:
            while self._next(place, lane):
                try:
                    worker = worker or self._make(*place)
                    worker.do(lane.tasks)
                except Exception as error:  # without an answer their clients would wait for ever
                    for task in lane.tasks:
                        task.fail(error)
                with self._changed:
                    lane.tasks, lane.since = [], time.monotonic()
                    self._changed.notify_all()
        finally:
            with self._changed:
                del self._lanes[place]
                self._threads.discard(threading.current_thread())
            if worker is not None:
                worker.close()

    def _next(self, place: Place, lane: _Lane[T]) -> bool:
        """Wait for tasks for a lane; False once it is to end."""
        while True:
            with self._changed:
                while not self._queue.has(partial(self._is_for, place)):
                    if self._closed or (place != _FIRST and time.monotonic() - lane.since > SPARE_IDLE_S):
                        return False
                    self._changed.wait(_TICK_S)
            room = self._room()
            with self._changed:
                if self._closed:
                    return False
                tasks = self._queue.take(lambda _: self._rows, partial(self._is_for, place, room=room))
                if tasks:
                    lane.tasks, lane.since = tasks, time.monotonic()
                    self._tell_waiting(len(self._queue))
                    return True
                # Of room nobody tells, so it is asked for again soon; a lane that has read a slide tells.
                self._changed.wait(_TICK_S if all(room) else _ASK_AGAIN_S)

    def _is_for(self, place: Place, task: T, room: Room = (True, True)) -> bool:
        """Whether a lane may do a task now.

        A further lane works while all before it are held up. Among those of its kind no other reads the task's slide,
        and not too many read of its root.
        """
        background, number = place
        if task.background != background or not room[background]:
            return False
        others = {n: lane for (kind, n), lane in self._lanes.items() if kind == background}
        busy = [lane.tasks[0] for lane in others.values() if lane.tasks]
        if any(other.slide == task.slide for other in busy):
            return False
        if sum(other.root == task.root for other in busy) >= MOST_LANES_A_ROOT:
            return False
        return all(_is_held_up(lane) for n, lane in others.items() if n < number)

    def _watch(self) -> None:
        """Answer tasks that nobody waits for, and add a lane where none is free for a task that need not wait."""
        while True:
            with self._changed:
                if self._closed:
                    return
                if self._queue.remove(lambda task: task.drop()):
                    self._tell_waiting(len(self._queue))
                for background in (False, True):
                    free = next(n for n in range(MOST_LANES + 1) if (background, n) not in self._lanes)
                    if free < MOST_LANES and self._queue.has(partial(self._is_for, (background, MOST_LANES))):
                        self._add_lane((background, free))
            time.sleep(_TICK_S)


_FIRST: Place = (False, 0)


def _is_held_up(lane: _Lane[Any]) -> bool:
    return bool(lane.tasks) and time.monotonic() - lane.since > SLOW_S
