"""The unit of work: a range of a slide's spots, and what scores it. Any scheduler can hand these out.

Requests of a slide are always composed alike: its spots in their spatial order, cut every ``batch_rows``. No request
has a single row: on a CPU, ONNX Runtime multiplies one row by another kernel, whose last bits differ; with two rows and
more a spot's values are the same bits whatever is scored beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from m2ost_contract import PYRAMID_PARAMETER, RowStatus
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.slides.spot_array import Places
from m2ost_preprocess.tiling.views import Centers

from ..answers import read_expression, read_scored
from ..requests import spot_inputs, view_inputs, whole_slide_inputs
from .pool import Drained, Pool
from .state import Part


@dataclass(frozen=True)
class SpotRange:
    """Neighbouring spots of one slide.

    Parameters
    ----------
    slide : str
        The slide's name under the servers' roots, or its path on this host where pixels are sent.
    first : int
        Position of the first in the slide's order of scoring.
    centers : ndarray of int32, shape (n, 2)
        x, y in level-0 pixels, in that order.
    scale : float
        Level-0 pixels per view pixel of the finest view.
    places : ndarray of int32, shape (n, 2), or None
        x, y on the array, of all spots of a slide that is predicted as a whole.
    pyramid : bool
        Whether coarse views may be cut from the slide's lower levels.
    """

    slide: str
    first: int
    centers: Centers
    scale: float
    places: Places | None = None
    pyramid: bool = False

    def requests(self, batch_rows: int) -> Iterator[SpotRange]:
        """The range cut into requests; one that is predicted as a whole is one."""
        if self.places is not None:
            yield self
            return
        for i in range(0, len(self.centers), batch_rows):
            yield replace(self, first=self.first + i, centers=self.centers[i : i + batch_rows])


class Scorer(Protocol):
    """Scores the spots of one request."""

    async def score(self, request: SpotRange, priority: int) -> Part:
        """Score up to 256 spots."""


class ByName:
    """Scores slides that the servers read themselves: only coordinates are sent."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def score(self, request: SpotRange, priority: int) -> Part:
        """See :class:`Scorer`."""
        n = len(request.centers)
        if request.places is not None:
            return await self._score_whole(request, request.places, priority)
        centers = _at_least_two(request.centers)

        async def inputs() -> list[Any]:
            return spot_inputs(request.slide, centers, request.scale)

        answer = await self._pool.infer(
            self._pool.info.names.slide, inputs, spots=n, priority=priority, parameters=_parameters(request)
        )
        expression, status = read_scored(answer, len(centers), self._pool.info)
        return Part(request.first, expression[:n], status[:n])

    async def _score_whole(self, request: SpotRange, places: Places, priority: int) -> Part:
        async def inputs() -> list[Any]:
            return whole_slide_inputs(request.slide, request.centers, places, request.scale)

        n = len(request.centers)
        answer = await self._pool.infer(
            self._pool.info.names.slide, inputs, spots=n, priority=priority, whole=True, parameters=_parameters(request)
        )
        return Part(request.first, *read_scored(answer, n, self._pool.info))


class BySending:
    """Scores slides that only this host reads: their views are cut here and sent."""

    def __init__(self, pool: Pool, decoder: Decoder) -> None:
        self._pool = pool
        self._decoder = decoder

    async def score(self, request: SpotRange, priority: int) -> Part:
        """See :class:`Scorer`."""
        n = len(request.centers)
        centers = _at_least_two(request.centers)
        status = np.zeros(n, np.int32)

        async def inputs() -> list[Any]:
            geometry, rows = self._pool.info.views, len(centers)
            views = [np.empty((rows, *geometry.shape), np.uint8) for _ in geometry.names]
            scales = np.full(rows, request.scale, np.float32)
            found = await asyncio.to_thread(
                self._decoder.cut_views, Path(request.slide), centers, scales, views, pyramid=request.pyramid
            )
            status[:] = found[:n]
            return view_inputs(geometry.names, views)

        answer = await self._pool.infer(self._pool.info.names.patches, inputs, spots=n, priority=priority)
        found = read_expression(answer, len(centers), self._pool.info)[:n]
        expression = np.where(status[:, None] == RowStatus.OK, found, np.float32(np.nan))
        return Part(request.first, expression, status)


async def score_range(
    scorer: Scorer,
    unit: SpotRange,
    *,
    batch_rows: int,
    concurrency: int,
    priority: int = 0,
    on_part: Callable[[Part], None] | None = None,
) -> Part:
    """Score one unit of work.

    Parameters
    ----------
    scorer : Scorer
    unit : SpotRange
        Its ``first`` a multiple of ``batch_rows``, so that requests are composed alike wherever ranges begin.
    batch_rows : int
        Spots a request.
    concurrency : int
        Most requests of this unit that are made at a time.
    priority : int
        Units with the least go first.
    on_part : callable, optional
        Receives the results of every request as it is answered.

    Returns
    -------
    Part
        Of the whole range.

    Raises
    ------
    RequestRejected, SlideError
        If the slide cannot be scored.
    ServerUnavailable
        If no server is left.
    Drained
        If the run takes up nothing new; what was answered has gone through ``on_part``.
    """
    requests = unit.requests(batch_rows)
    parts: list[Part] = []
    failures: list[Exception] = []

    async def work() -> None:
        for request in requests:
            try:
                part = await scorer.score(request, priority)
            except Exception as error:
                failures.append(error)
                return
            parts.append(part)
            if on_part is not None:
                on_part(part)
            if failures:  # what was under way is not thrown away, but nothing new is begun
                return

    workers = [asyncio.ensure_future(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    if failures:
        # A slide that cannot be scored is that, whether or not the run ends as well.
        raise next((f for f in failures if not isinstance(f, Drained)), failures[0])
    return join(parts, len(unit.centers), first=unit.first)


def join(parts: Iterable[Part], n_spots: int, *, first: int = 0) -> Part:
    """Parts that together are the ``n_spots`` spots from ``first`` on.

    Raises
    ------
    ValueError
        If a spot is missing or came twice.
    """
    ordered = sorted(parts, key=lambda part: part.first)
    at = first
    for part in ordered:
        if part.first != at:
            raise ValueError(f"spots {at} to {part.first} are missing or came twice")
        at += len(part.status)
    if at != first + n_spots:
        raise ValueError(f"spots {at} to {first + n_spots} are missing")
    if not ordered:
        return Part(first, np.zeros((0, 0), np.float32), np.zeros(0, np.int32))
    return Part(
        first,
        np.concatenate([p.expression for p in ordered]),
        np.concatenate([p.status for p in ordered]).astype(np.int32),
    )


def missing(have: Iterable[Part], n_spots: int, range_spots: int) -> list[tuple[int, int]]:
    """What is still to score of a slide, as ranges (first, end) of at most ``range_spots`` in its order of scoring.

    Parameters
    ----------
    have : iterable of Part
        What is there already.
    n_spots : int
        Spots of the slide.
    range_spots : int
        A multiple of the spots a request.
    """
    gaps, at = [], 0
    for part in sorted(have, key=lambda part: part.first):
        if part.first > at:
            gaps.append((at, part.first))
        at = max(at, part.first + len(part.status))
    if at < n_spots:
        gaps.append((at, n_spots))
    return [(i, min(i + range_spots, end)) for first, end in gaps for i in range(first, end, range_spots)]


def _parameters(request: SpotRange) -> dict[str, Any]:
    return {PYRAMID_PARAMETER: True} if request.pyramid else {}


def _at_least_two(centers: Centers) -> Centers:
    return np.repeat(centers, 2, axis=0) if len(centers) == 1 else centers
