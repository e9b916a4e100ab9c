"""How far long work is: whoever does it tells, whoever started it listens. Nobody listens unless asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str, int, int], None]
"""Takes what is being done, how much of it is done, and how much there is."""

_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have all progress in this process told to ``listener`` while the block runs; any thread may call it."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(what: str, done: int, total: int) -> None:
    """Say that ``done`` steps of ``total`` are done, and what comes next."""
    for listener in tuple(_listeners):
        listener(what, done, total)
