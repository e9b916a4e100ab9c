"""Where a run's units of work are scored: by this process, or by whatever hands them to others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .pool import Pool
from .score import Scorer, SpotRange, score_range
from .state import Part


class Runner(Protocol):
    """Scores units of work.

    Attributes
    ----------
    range_spots : int or None
        Most spots of a unit, a multiple of the spots a request; None for whole slides.
    """

    range_spots: int | None

    async def score(self, units: Sequence[SpotRange], *, priority: int, on_part: Callable[[Part], None]) -> None:
        """Score the units of one slide.

        Parameters
        ----------
        units : sequence of SpotRange
        priority : int
            Slides with the least go first.
        on_part : callable
            Receives results as they come; together they are all spots of all units.

        Raises
        ------
        RequestRejected, SlideError
            If the slide cannot be scored.
        ServerUnavailable
            If no server is left.
        Drained
            If the run takes up nothing new; what was under way has gone through ``on_part``.
        """

    def drain(self) -> None:
        """Begin nothing new."""

    def facts(self) -> dict[str, Any]:
        """For the summary of the run."""


class InProcess:
    """Scores units one after the other through a pool of this process.

    Parameters
    ----------
    pool : Pool
    scorer : Scorer
    batch_rows : int
        Spots a request.
    """

    range_spots = None

    def __init__(self, pool: Pool, scorer: Scorer, batch_rows: int) -> None:
        self._pool, self._scorer, self._batch_rows = pool, scorer, batch_rows

    async def score(self, units: Sequence[SpotRange], *, priority: int, on_part: Callable[[Part], None]) -> None:
        """See :class:`Runner`."""
        for unit in units:
            await score_range(
                self._scorer,
                unit,
                batch_rows=self._batch_rows,
                concurrency=self._pool.capacity,
                priority=priority,
                on_part=on_part,
            )

    def drain(self) -> None:
        """See :class:`Runner`; the pool is drained itself."""

    def facts(self) -> dict[str, Any]:
        """See :class:`Runner`."""
        return {}
