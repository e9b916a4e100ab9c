"""Signs of life of a process that decodes: whoever waits for it tells slow from hung by them."""

from __future__ import annotations

from collections.abc import Callable


def _nobody() -> None:
    """Where nobody watches."""


_beat: Callable[[], None] = _nobody


def report_to(beat: Callable[[], None]) -> None:
    """Have every sign of progress in this process told to ``beat``, which any thread may call."""
    global _beat
    _beat = beat


def beat() -> None:
    """A step is done: a tile decoded, a strip read, a region cut."""
    _beat()
