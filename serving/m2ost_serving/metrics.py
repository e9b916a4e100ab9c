"""What a served model counts for Prometheus, beside what Triton does. Imports nothing of Triton: the models hand it in.

``docs/metrics.md`` says what each metric means.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from m2ost_contract import PositionsError
from m2ost_preprocess.errors import (
    PreprocessError,
    SlideChanged,
    SlideError,
    SlideNotFound,
    SlideTimeout,
    UnknownResolution,
    UnknownTissue,
    UnreadableSlide,
)

from .queueing import Cancelled, QueueFull, TooLate
from .shared_memory import NoSharedMemory


class Metrics:
    """A model's own metrics. One that cannot be told is passed to ``warn``, and costs no request.

    Parameters
    ----------
    pb_utils : module
        Of the Python backend's.
    model : str
        Label ``model`` of every metric; empty for metrics of the server as a whole, which have no such label.
    warn : callable
        Told the error of a metric that could not be told.
    """

    def __init__(self, pb_utils: Any, model: str, warn: Callable[[str], None]) -> None:
        self._pb_utils, self._warn = pb_utils, warn
        self._labels = {"model": model} if model else {}
        # The backend's metrics are not thread-safe, and are gone with their families.
        self._lock, self._families = threading.Lock(), list[Any]()

    def counter(self, name: str, description: str) -> Callable[[float], None]:
        """A counter: called with what is to be added."""
        return self.counters(name, description, ({},))[0]

    def counters(
        self, name: str, description: str, labels: Sequence[Mapping[str, str]]
    ) -> list[Callable[[float], None]]:
        """Counters of one name, each with further labels."""
        family = self._family(name, description, self._pb_utils.MetricFamily.COUNTER)
        metrics = [family.Metric(labels={**self._labels, **more}) for more in labels]
        return [partial(self._tell, metric.increment) for metric in metrics]

    def gauge(self, name: str, description: str) -> Callable[[float], None]:
        """A gauge: called with its value."""
        family = self._family(name, description, self._pb_utils.MetricFamily.GAUGE)
        return partial(self._tell, family.Metric(labels=self._labels).set)

    def sum(self, name: str, description: str) -> Callable[[float], None]:
        """A gauge that every instance of the model adds to: called with what is to be added."""
        family = self._family(name, description, self._pb_utils.MetricFamily.GAUGE)
        return partial(self._tell, family.Metric(labels=self._labels).increment)

    def _family(self, name: str, description: str, kind: Any) -> Any:
        self._families.append(self._pb_utils.MetricFamily(name=name, description=description, kind=kind))
        return self._families[-1]

    def _tell(self, tell: Callable[[float], None], value: float) -> None:
        try:
            with self._lock:
                tell(value)
        except Exception as error:
            self._warn(repr(error))


_OF_SLIDES: tuple[tuple[type[Exception], str], ...] = (
    (SlideNotFound, "not_found"),
    (UnreadableSlide, "unreadable"),
    (SlideTimeout, "timeout"),
    (SlideChanged, "changed"),
    (UnknownResolution, "unknown_resolution"),
    (UnknownTissue, "unknown_tissue"),
)
_OF_REQUESTS: tuple[tuple[type[Exception], str], ...] = (
    (Cancelled, "cancelled"),
    (QueueFull, "queue_full"),
    (TooLate, "too_late"),
    (NoSharedMemory, "shared_memory"),
    (SlideError, "slide"),
    (PreprocessError, "invalid"),
    (PositionsError, "invalid"),
    (Exception, "internal"),
)


class Refusals:
    """Counts the requests that a model answers by an error, and the slides among what it was asked for that failed."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = _by_reason(
            metrics, "m2ost_requests_refused_total", "requests answered by an error", _OF_REQUESTS
        )
        self._slides = _by_reason(
            metrics, "m2ost_slides_failed_total", "slides of requests that could not be read", _OF_SLIDES
        )

    def request(self, error: Exception) -> None:
        """Count a request that is answered by this error, and the slide that the error is about."""
        _count(self._requests, _OF_REQUESTS, error)
        self.slide(error)

    def slide(self, error: Exception) -> None:
        """Count a slide that this error is about."""
        _count(self._slides, _OF_SLIDES, error)


def _by_reason(
    metrics: Metrics, name: str, description: str, kinds: Sequence[tuple[type[Exception], str]]
) -> dict[str, Callable[[float], None]]:
    reasons = list(dict.fromkeys(reason for _, reason in kinds))
    counters = metrics.counters(name, description, [{"reason": reason} for reason in reasons])
    return dict(zip(reasons, counters, strict=True))


def _count(
    counters: Mapping[str, Callable[[float], None]], kinds: Sequence[tuple[type[Exception], str]], error: Exception
) -> None:
    reason = next((reason for kind, reason in kinds if isinstance(error, kind)), None)
    if reason is not None:
        counters[reason](1)
