"""Seconds by stage, on a clock that may be another than the wall's."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OnStage = Callable[[str, float], None]


class Stopwatch:
    """Adds up how long each stage took.

    Parameters
    ----------
    clock : callable
        Seconds, from any origin.
    on_stage : callable, optional
        Receives (stage, seconds) whenever a piece of a stage ends.

    Attributes
    ----------
    seconds : dict of str to float
        Stage → seconds so far, or since the last lap.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, on_stage: OnStage | None = None) -> None:
        self._clock, self._on_stage = clock, on_stage
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the block as a piece of ``stage``."""
        began = self._clock()
        yield
        spent = self._clock() - began
        self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        if self._on_stage is not None:
            self._on_stage(stage, spent)

    def lap(self) -> dict[str, float]:
        """Seconds of each stage since the last lap, which start from 0 again; a stage that did not run has 0."""
        lap, self.seconds = defaultdict(float, self.seconds), {}
        return lap
