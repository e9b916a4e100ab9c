"""Which request is next: a bounded queue that is fair between clients, and joins what shares a slide."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from m2ost_contract import QUEUE_FULL
from m2ost_preprocess.errors import SlideTimeout

BACKGROUND_TURNS = 8
"""Of so many turns one belongs to background work, while there is other work: it is late, and gets on."""


WAIT_S = 600.0
"""Longest time that a request waits for its turn, in seconds; one that nobody waits for any more is dropped before."""


def why_dropped(name: str, *, cancelled: bool, arrived: float) -> Exception | None:
    """Why a request for a slide is answered without its turn: its client has gone, or it has waited for too long.

    Parameters
    ----------
    name : str
        The slide's, for the message.
    cancelled : bool
        Whether the client has gone.
    arrived : float
        When the request came, by ``time.monotonic``.
    """
    if cancelled:
        return Cancelled("cancelled")
    if time.monotonic() - arrived > WAIT_S:
        return SlideTimeout(name, f"its turn did not come within {WAIT_S:g} s; send it again")
    return None


class Entry(Protocol):
    """What can wait in a queue.

    Attributes
    ----------
    sender : str
        Whose it is: clients take turns.
    background : bool
        Whether work of others goes first.
    together : hashable or None
        Entries of one value that is not None may be taken at once.
    rows : int
        How large it is.
    """

    @property
    def sender(self) -> str: ...
    @property
    def background(self) -> bool: ...
    @property
    def together(self) -> Hashable | None: ...
    @property
    def rows(self) -> int: ...


E = TypeVar("E", bound=Entry)


class QueueFull(Exception):
    """As much waits as may."""


class TooLate(Exception):
    """An entry was given up before its turn was taken; it may be sent again."""


class Cancelled(Exception):
    """The client of an entry has gone."""


class FairQueue(Generic[E]):
    """Entries that wait. Not thread-safe.

    Parameters
    ----------
    most : int
        How much may wait; of background work three quarters of it, so that others find room.
    size : callable
        How much of it an entry is; by default every entry is one.
    unit : str
        Of what, for the refusal's words.
    """

    def __init__(self, most: int, *, size: Callable[[E], int] = lambda entry: 1, unit: str = "requests") -> None:
        self._most, self._size, self._unit = most, size, unit
        self._waiting: list[E] = []
        self._served: dict[str, int] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, entries: list[E]) -> None:
        """Add entries, all or none.

        Raises
        ------
        QueueFull
            If more would wait than may. An empty queue takes any number.
        """
        self.check_room(sum(map(self._size, entries)), background=entries[0].background)
        self._waiting += entries

    @property
    def size(self) -> int:
        """How much waits."""
        return sum(map(self._size, self._waiting))

    def check_room(self, size: int, *, background: bool) -> None:
        """Refuse what would be too much; an empty queue has room for anything.

        Raises
        ------
        QueueFull
            If more would wait than may.
        """
        most, waiting = self._most * 3 // 4 if background else self._most, self.size
        if waiting and waiting + size > most:
            raise QueueFull(f"{waiting} {self._unit} {QUEUE_FULL}, {most} may; send this one again later")

    def take(self, rows: Callable[[E], int], may: Callable[[E], bool]) -> list[E]:
        """The entries whose turn it is, removed: one, and those that can be done together with it.

        Background work goes last, but for one turn of ``BACKGROUND_TURNS``. Of the clients of a kind the one goes first
        whose last turn is the longest ago.

        Parameters
        ----------
        rows : callable
            How many rows may be taken together with the entry whose turn it is, its own among them; it may have more.
        may : callable
            Whether an entry can be done now.

        Returns
        -------
        list
            Empty where nothing can be done now.
        """
        able = [entry for entry in self._waiting if may(entry)]
        if not able:
            return []
        self._turn += 1
        background_first = self._turn % BACKGROUND_TURNS == 0
        first = min(able, key=lambda e: (e.background != background_first, self._served.get(e.sender, -math.inf)))
        taken, room = [first], rows(first) - first.rows
        if first.together is not None:
            for entry in able:
                if entry is not first and entry.together == first.together and entry.rows <= room:
                    taken.append(entry)
                    room -= entry.rows
        for entry in taken:
            self._waiting.remove(entry)
            self._served[entry.sender] = self._turn
        waiting = {entry.sender for entry in self._waiting} | {entry.sender for entry in taken}
        self._served = {sender: turn for sender, turn in self._served.items() if sender in waiting}
        return taken

    def has(self, may: Callable[[E], bool]) -> bool:
        """Whether an entry waits that can be done now."""
        return any(may(entry) for entry in self._waiting)

    def remove(self, gone: Callable[[E], bool]) -> list[E]:
        """Remove the entries that ``gone`` is true of; returns them."""
        removed = [entry for entry in self._waiting if gone(entry)]
        self._waiting = [entry for entry in self._waiting if entry not in removed]
        return removed
