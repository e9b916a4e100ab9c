"""When a server will not start, is hung, or is started anew. Pure: the caller brings the time and the counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MAX_RESTART_DELAY_S = 30.0
"""Longest time before a server that died is started anew, in seconds."""

HEALTHY_AFTER_S = 60.0
"""A server that was ready for so long, in seconds, is started anew at once when it dies."""

START_GRACE_S = 3.0
"""Time for a server to end by itself once a part of it has failed to start, in seconds: it says why meanwhile."""


class Backoff:
    """How long to wait before a server that died is started anew: 0, 1, 2, 4 … seconds, up to MAX_RESTART_DELAY_S."""

    def __init__(self) -> None:
        self._delay_s = 0.0

    def delay_s(self, ready_for_s: float) -> float:
        """The time to wait, in seconds, after a server that was ready for so long; 0 where it never was."""
        delay_s = 0.0 if ready_for_s >= HEALTHY_AFTER_S else self._delay_s
        self._delay_s = min(max(1.0, 2 * delay_s), MAX_RESTART_DELAY_S)
        return delay_s


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


class WorkWatch:
    """Which models have worked since they were last looked at."""

    def __init__(self) -> None:
        self._before: Mapping[str, float] = {}

    def moved(self, executions: Mapping[str, float]) -> frozenset[str]:
        """The models of which more executions are counted than the time before."""
        before, self._before = self._before, executions
        return frozenset(model for model, count in executions.items() if count > before.get(model, count))


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
