"""Seconds by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the wall-clock seconds of a block under ``name``."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = round(time.perf_counter() - started, 4)
