"""What became of every request of a load: exact latencies, spots, bytes, failures by reason; merged over workers.

Nothing is rounded into buckets: a request takes 28 bytes here, a million requests 28 MB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Sample:
    """What became of one request.

    Parameters
    ----------
    intended_at : float
        When it was due, in seconds since the epoch: a latency counts from here, so that what held back the sender is in
        it (no coordinated omission).
    sent_at, completed_at : float
        When it was handed to gRPC, and when its answer was there.
    bytes_sent : int
        Size of the serialized request.
    asked : int
        Its spots.
    spots : int
        Spots with a value; 0 for a failure.
    without_value : mapping of str to int
        Spots without one, by status.
    failure : str or None
        Why it failed.
    """

    intended_at: float
    sent_at: float
    completed_at: float
    bytes_sent: int
    asked: int
    spots: int = 0
    without_value: Mapping[str, int] = field(default_factory=dict)
    failure: str | None = None


class Series:
    """The requests to one model of one class of traffic."""

    def __init__(self) -> None:
        self.completed_at: list[float] = []
        self.latency_s: list[float] = []
        self.lag_s: list[float] = []
        self.spots: list[int] = []
        self.bytes_sent = 0
        self.asked = 0
        self.unanswered = 0
        self.failures: Counter[str] = Counter()
        self.without_value: Counter[str] = Counter()

    def add(self, sample: Sample) -> None:
        """Note a request that was answered or has failed."""
        self.bytes_sent += sample.bytes_sent
        self.asked += sample.asked
        if sample.failure is not None:
            self.failures[sample.failure] += 1
            return
        self.without_value.update(sample.without_value)
        self.completed_at.append(sample.completed_at)
        self.latency_s.append(sample.completed_at - sample.intended_at)
        self.lag_s.append(sample.sent_at - sample.intended_at)
        self.spots.append(sample.spots)

    def due(self) -> int:
        """Requests that were due: answered, failed or neither."""
        return len(self.completed_at) + self.failures.total() + self.unanswered

    def to_dict(self) -> dict[str, Any]:
        """For a message to another process."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    def merge(self, raw: Mapping[str, Any]) -> None:
        """Add what another process counted (:meth:`to_dict`)."""
        for name, value in vars(self).items():
            if isinstance(value, list):
                value.extend(raw[name])
            elif isinstance(value, Counter):
                value.update(raw[name])
            else:
                setattr(self, name, value + raw[name])

    def summary(self, since: float, until: float) -> dict[str, Any]:
        """Figures of the requests answered in ``[since, until]``; failures, bytes and the like are of the whole run."""
        at = np.asarray(self.completed_at)
        inside = (at >= since) & (at <= until)
        seconds = max(until - since, 1e-9)
        spots = int(np.asarray(self.spots)[inside].sum()) if inside.any() else 0
        return {
            "requests": int(inside.sum()),
            "spots": spots,
            "requests_per_s": float(inside.sum() / seconds),
            "spots_per_s": spots / seconds,
            "latency_s": _distribution(np.asarray(self.latency_s)[inside]),
            "send_lag_s": _distribution(np.asarray(self.lag_s)[inside]),
            "bytes_per_spot": self.bytes_sent / self.asked if self.asked else None,
            "failed": sum(self.failures.values()),
            "failures": dict(self.failures.most_common()),
            "spots_without_value": dict(self.without_value.most_common()),
            "unanswered_at_the_end": self.unanswered,
        }


def _distribution(values: np.ndarray[Any, Any]) -> dict[str, float] | None:
    if not len(values):
        return None
    quantiles = np.percentile(values, PERCENTILES)
    figures = {f"p{p}": float(q) for p, q in zip(PERCENTILES, quantiles, strict=True)}
    return {"mean": float(values.mean()), **figures, "max": float(values.max())}


class LoadStatistics:
    """The requests of a load, by name."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.series: dict[str, Series] = {}
        self.first_at: float | None = None
        self.last_due: float | None = None
        self.last_at: float | None = None

    def add(self, name: str, sample: Sample) -> None:
        """Note a request that was answered or has failed."""
        self.series.setdefault(name, Series()).add(sample)
        self._extend(sample.intended_at, sample.intended_at, sample.completed_at)

    def add_unanswered(self, name: str, asked_at: float) -> None:
        """Note a request that the end of the load found unanswered."""
        self.series.setdefault(name, Series()).unanswered += 1
        self._extend(asked_at, asked_at, asked_at)

    def take(self) -> dict[str, Any]:
        """Everything since the last call, as a message for :meth:`merge` in another process."""
        taken = {
            "series": {name: series.to_dict() for name, series in self.series.items()},
            "span": [self.first_at, self.last_due, self.last_at],
        }
        self.clear()
        return taken

    def merge(self, taken: Mapping[str, Any]) -> None:
        """Add what another process counted."""
        for name, raw in taken["series"].items():
            self.series.setdefault(name, Series()).merge(raw)
        first, due, last = taken["span"]
        if first is not None:
            self._extend(first, due, last)

    def _extend(self, first: float, due: float, last: float) -> None:
        self.first_at = first if self.first_at is None else min(self.first_at, first)
        self.last_due = due if self.last_due is None else max(self.last_due, due)
        self.last_at = last if self.last_at is None else max(self.last_at, last)

    def total(self) -> Series:
        """All requests, whatever their name."""
        total = Series()
        for series in self.series.values():
            total.merge(series.to_dict())
        return total

    def summary(self, stages: Iterable[tuple[int, float, float]] = ()) -> dict[str, Any]:
        """Figures of the load.

        Parameters
        ----------
        stages : iterable of (users, since, until)
            Stages of a step load, in seconds since the epoch.

        Returns
        -------
        dict
            ``elapsed_s`` from the first request's intended start to the last answer; ``all`` and ``by_name``, each as
            :meth:`Series.summary`; ``stages`` with the figures of each; ``offered`` with the requests that were due,
            answered or not, and the answers that came before the last of them was due, in so many seconds.
        """
        first, due, last = self.first_at or 0.0, self.last_due or 0.0, self.last_at or 0.0
        total = self.total()
        kept = ("requests", "spots", "requests_per_s", "spots_per_s", "latency_s")
        requests = total.due()
        meanwhile = total.summary(first, due)
        return {
            "elapsed_s": last - first,
            "offered": {
                "seconds": due - first,
                "requests": requests,
                "requests_per_s": requests / max(due - first, 1e-9),
                "answered_spots_per_s": meanwhile["spots_per_s"],
            },
            "all": total.summary(first, last),
            "by_name": {name: self.series[name].summary(first, last) for name in sorted(self.series)},
            "stages": [
                {"users": users, "seconds": until - since}
                | {key: value for key, value in total.summary(since, until).items() if key in kept}
                for users, since, until in stages
            ],
        }
