"""What is in flight, bounded by spots."""

from __future__ import annotations

import asyncio

LOOKED_AT = 8
"""Slides that are looked at ahead, at a time: until then nobody knows how many spots they have."""

LEAST_SPOTS = 128
"""A slide counts at least as many spots as this while it is in flight: its overview takes memory too."""


class Budget:
    """Bounds what is in flight: spots of slides that are known, and slides that are not yet."""

    def __init__(self, spots: int) -> None:
        self._limit = spots
        self._spots = self._unknown = 0
        self._changed = asyncio.Condition()

    async def admit(self) -> None:
        """Wait until one more slide may be looked at."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._unknown < LOOKED_AT and self._spots < self._limit)
            self._unknown += 1

    async def change(self, *, unknown: int = 0, spots: int = 0) -> None:
        """Count more, or fewer."""
        async with self._changed:
            self._unknown += unknown
            self._spots += spots
            self._changed.notify_all()


class Share:
    """One slide's share of the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._spots: int | None = None

    async def spots(self, spots: int) -> None:
        """Its spots are counted now."""
        self._spots = max(spots, LEAST_SPOTS)
        await self._budget.change(unknown=-1, spots=self._spots)

    async def forget(self) -> None:
        """It is no longer in flight."""
        await (self._budget.change(unknown=-1) if self._spots is None else self._budget.change(spots=-self._spots))
