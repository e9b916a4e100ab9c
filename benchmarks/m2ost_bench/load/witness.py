"""A locustfile whose workers count for themselves what becomes of their requests, and keep some of the answers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import m2ost_contract as contract
import numpy as np
from locust import events
from locust.runners import WorkerRunner
from m2ost_loadtests.load.locustfile import SlideUser
from m2ost_loadtests.load.requests import output

from m2ost_bench.load.testimony import FOLDER, Seen

__all__ = ["SlideUser"]

EVERY, MOST = 5, 12
"""Of the answers every so many is kept, and so many at most."""


class Witness:
    """Of one worker's process."""

    def __init__(self) -> None:
        self._answered = self._spots = 0
        self._failures: Counter[str] = Counter()
        self._kept: list[tuple[Any, Any]] = []

    def on_request(self, context: Mapping[str, Any], response: Any, exception: Exception | None, **_: Any) -> None:
        """Count a request; Locust tells of it when it has ended."""
        if exception is not None:
            self._failures[str(exception)] += 1
            return
        if self._answered % EVERY == 0 and len(self._kept) < MOST:
            self._kept.append((_centers(context["request"]), output(response, contract.EXPRESSION)))
        self._answered += 1
        self._spots += context["spots"]

    def on_quitting(self, environment: Any, **_: Any) -> None:
        """Write it down; a master has seen nothing."""
        if not isinstance(environment.runner, WorkerRunner):
            return
        kept: list[Any] = [np.concatenate(parts) for parts in zip(*self._kept, strict=True)] or [None, None]
        seen = Seen(
            answered=self._answered,
            spots=self._spots,
            failures=dict(self._failures),
            centers=kept[0],
            expression=kept[1],
        )
        seen.write(Path(os.environ[FOLDER]), str(os.getpid()))


def _centers(request: Any) -> Any:
    """The spots that a request asks for."""
    index = [tensor.name for tensor in request.inputs].index(contract.CENTER)
    return np.frombuffer(request.raw_input_contents[index], np.int32).reshape(-1, 2)


witness = Witness()
events.request.add_listener(witness.on_request)
events.quitting.add_listener(witness.on_quitting)
