"""How far a command is: a bar with rate and time left on a terminal, and a line every 30 s in a log file."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from m2ost_contract.progress import listening

INTERVAL_S = 30.0
"""Between two lines in a log file."""


class Update(Protocol):
    """Takes how far the work is."""

    def __call__(self, done: int, total: int | None, note: str = "") -> None:
        """``done`` of ``total`` units; ``note`` stands in place of the title, until the next."""


@contextmanager
def progress(
    title: str, unit: str, *, stream: TextIO | None = None, interval_s: float = INTERVAL_S
) -> Iterator[Update]:
    """Show how far work is while the block runs.

    Parameters
    ----------
    title : str
        What is done, such as ``scoring``.
    unit : str
        What is counted, in the plural, such as ``spots``.
    stream : file, optional
        Where to show it; by default standard error.
    interval_s : float
        Between two lines, where ``stream`` is no terminal.
    """
    stream = stream or sys.stderr
    shown = _bar(title, unit, stream) if stream.isatty() else _lines(title, unit, stream, interval_s)
    with shown as update:
        yield update


@contextmanager
def working(title: str, unit: str = "steps") -> Iterator[None]:
    """Show how far the work of the block is, as that work itself tells: see :mod:`m2ost_contract.progress`."""
    with progress(title, unit) as update, listening(lambda what, done, total: update(done, total, f"{title}: {what}")):
        yield


@contextmanager
def _bar(title: str, unit: str, stream: TextIO) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.3g} {unit}/s" if speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task(title, total=None)

        def update(done: int, total: int | None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, description=note or title)

        yield update


class _State:
    """What was told last, and since when."""

    def __init__(self, title: str) -> None:
        self.began = time.monotonic()
        self.first: tuple[float, int] | None = None
        self.done, self.total, self.words = 0, None, title


@contextmanager
def _lines(title: str, unit: str, stream: TextIO, interval_s: float) -> Iterator[Update]:
    state: Any = _State(title)
    ended = threading.Event()

    def update(done: int, total: int | None, note: str = "") -> None:
        if state.first is None:
            state.first = (time.monotonic(), done)
        state.done, state.total, state.words = done, total, note or title

    def write() -> None:
        while not ended.wait(interval_s):
            print(_line(state, unit, time.monotonic()), file=stream, flush=True)

    thread = threading.Thread(target=write, name="progress", daemon=True)
    thread.start()
    try:
        yield update
    finally:
        ended.set()
        thread.join()


def _line(state: Any, unit: str, now: float) -> str:
    parts = []
    if state.total is not None:
        parts.append(f"{state.done:,} of {state.total:,} {unit}")
    if state.first is not None:
        since, at = state.first
        rate = (state.done - at) / (now - since) if now > since else 0.0
        if rate > 0:
            parts.append(f"{rate:.3g} {unit}/s")
            if state.total is not None:
                parts.append(f"{_duration((state.total - state.done) / rate)} left")
    parts.append(f"{_duration(now - state.began)} so far")
    return f"{state.words}: {', '.join(parts)}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
