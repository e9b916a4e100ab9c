"""When a server will not start, is hung, or has died too often. Pure: the caller brings the time and the counts."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping

RESTART_WINDOW_S = 600.0
"""Restarts longer ago than this no longer count, in seconds."""

START_GRACE_S = 3.0
"""Time for a server to end by itself once a part of it has failed to start, in seconds: it says why meanwhile."""


class RestartBudget:
    """How often a server may be replaced within ``RESTART_WINDOW_S``.

    Parameters
    ----------
    restarts : int
        Most restarts within any such time.
    """

    def __init__(self, restarts: int) -> None:
        self._restarts = restarts
        self._spent: collections.deque[float] = collections.deque()

    def spend(self, now: float) -> bool:
        """Whether one more restart is allowed at ``now`` (seconds, any origin); counts it if so."""
        while self._spent and now - self._spent[0] >= RESTART_WINDOW_S:
            self._spent.popleft()
        if len(self._spent) >= self._restarts:
            return False
        self._spent.append(now)
        return True


class HangWatch:
    """Which model is hung: it answers no probe and executes nothing.

    A probe waits behind other requests: as long as the model that is silent gets those done, it is busy, not hung. What
    other models get done says nothing about it.

    Parameters
    ----------
    timeout_s : float
        Longest time without either, in seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._quiet: dict[str, tuple[float | None, float]] = {}  # model → its executions, and since when

    def hung(self, silent: Iterable[str], executions: Mapping[str, float], now: float) -> str | None:
        """The first model that is hung, or None.

        Parameters
        ----------
        silent : iterable of str
            The models that did not answer the probe just made.
        executions : mapping of str to float
            Executions so far by model; a model that is absent is taken to have made none since.
        now : float
            Time in seconds, any origin.
        """
        before, self._quiet = self._quiet, {}
        for model in silent:
            count, since = before.get(model, (None, now))
            latest = executions.get(model, count)
            self._quiet[model] = (latest, now if latest != count else since)
        return next((m for m, (_, since) in self._quiet.items() if now - since > self._timeout_s), None)


class StartWatch:
    """Whether a server that runs on will never be ready: Triton waits for a model's process that has ended for ever.

    Parameters
    ----------
    grace_s : float
        How long a sign may be seen before it counts, in seconds.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._since: dict[str, float] = {}

    def failed(self, signs: Iterable[str], now: float) -> str | None:
        """The first sign that has been there for too long, or None.

        Parameters
        ----------
        signs : iterable of str
            What is seen now that does not belong to a start.
        now : float
            Time in seconds, any origin.
        """
        self._since = {sign: self._since.get(sign, now) for sign in signs}
        return next((sign for sign, since in self._since.items() if now - since >= self._grace_s), None)
