"""How many rows of the tiler's wait for the engine, as this server's own metrics tell."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from m2ost_contract import ENGINE_WAITING_METRIC, GUARDED_METRIC, METRICS_URL_ENV, MODEL_ENGINE, MODEL_GUARD
from m2ost_preprocess.network import read_url

_PENDING = re.compile(r'^nv_inference_pending_request_count\{model="(\w+)"[^}]*\} (\d+)', re.MULTILINE)
_WAITING = re.compile(rf"^{ENGINE_WAITING_METRIC}\{{([^}}]*)\}} ([0-9.e+]+)", re.MULTILINE)
_GUARDED = re.compile(rf"^{GUARDED_METRIC}\{{([^}}]*)\}} ([0-9.e+]+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

ENGINES_PARAMETER, GUARDS_PARAMETER = "engines", "guards"
"""Parameters of the config of a tiler of several releases: JSON lists of the engines that it cuts views for, and of the
models behind them that count their rows."""


def read_metrics() -> str:
    """This server's own metrics, in Prometheus's text format.

    Raises
    ------
    OSError
        If they do not answer within a second; says which variable gives their address.
    """
    url = os.environ.get(METRICS_URL_ENV, "http://localhost:8002/metrics")
    try:
        return read_url(url, 1.0)
    except OSError as error:
        raise OSError(f"{error}; set {METRICS_URL_ENV} to this server's metrics") from error


def _rows_of(metric: re.Pattern[str], page: str) -> Iterator[tuple[dict[str, str], float]]:
    """Labels and rows of every sample of a metric."""
    for labels, rows in metric.findall(page):
        yield dict(_LABEL.findall(labels)), float(rows)


class _Sent:
    """Rows that were sent to the engine, and have not come out behind it."""

    def __init__(self) -> None:
        self._rows, self._lost = 0, 0.0
        self._latest: deque[tuple[float, int]] = deque(maxlen=1024)

    def add(self, rows: int) -> None:
        self._rows += rows
        self._latest.append((time.monotonic(), rows))

    def left(self, came_out: float, idle: bool) -> float:
        """How many are there, but for those of which nothing comes out any more.

        Their clients have gone, or the engine refused them.
        """
        unseen = self._rows - came_out
        if idle:
            self._lost = max(0.0, unseen - self._within(RUN_S))
            return 0.0
        self._lost = max(self._lost, unseen - self._within(FORGOTTEN_S))
        return unseen - self._lost

    def _within(self, seconds: float) -> int:
        return sum(rows for at, rows in tuple(self._latest) if time.monotonic() - at < seconds)


class EngineQueue:
    """Room in the queue of the engine, for the tiler to work no further ahead than the engine can use.

    Views that wait for the engine take memory, and are cut for nobody where their client goes. Counted are the tiler's
    own rows: those sent on, less those that came out behind the engine. What callers of pixels keep waiting beside them
    holds nobody up here, as clients take turns there too; nor does background work hold up other work, which goes
    before it there. The limit is kept by this and not by Triton's ``max_queue_size`` or queue timeouts: with one of
    those set, Triton's batcher prepares no batch while an instance is busy, and afterwards looks for it every 500 ms
    only (``SupportPrefetching`` in its scheduler).

    Parameters
    ----------
    rows : int
        Rows that may wait for the engine before the tiler waits; background work waits at half of it.
    warn : callable
        Told once in a while why the queue cannot be seen. Everything has room then.
    parameters : mapping of str to str, optional
        Of the tiler's config: which engines it cuts views for. There is room for ``rows`` of each, and one that is slow
        can take all of it.
    """

    def __init__(self, rows: int, warn: Callable[[str], None], parameters: Mapping[str, str] | None = None) -> None:
        told = parameters or {}
        self._engines = frozenset(json.loads(told.get(ENGINES_PARAMETER, f'["{MODEL_ENGINE}"]')))
        self._guards = frozenset(json.loads(told.get(GUARDS_PARAMETER, f'["{MODEL_GUARD}"]')))
        self._rows, self._warn = rows * len(self._engines), warn
        self._others, self._background = _Sent(), _Sent()
        self._warned = -math.inf

    def sent(self, rows: int, background: bool) -> None:
        """Note that a request with so many rows to score goes on to the engine."""
        (self._background if background else self._others).add(rows)

    def room(self) -> tuple[bool, bool]:
        """Whether there is room for more, and for more background work."""
        try:
            page = read_metrics()
        except OSError as error:
            if time.monotonic() - self._warned > 60:
                self._warned = time.monotonic()
                self._warn(str(error))
            return True, True
        pending = sum(int(count) for model, count in _PENDING.findall(page) if model in self._engines)
        waiting = sum(rows for labels, rows in _rows_of(_WAITING, page) if labels["model"] in self._engines)
        idle = not pending and not waiting
        came_out = dict.fromkeys((OTHERS, BACKGROUND), 0.0)
        for labels, rows in _rows_of(_GUARDED, page):
            if labels["model"] in self._guards:
                came_out[labels["background"]] += rows
        others = self._others.left(came_out[OTHERS], idle)
        background = self._background.left(came_out[BACKGROUND], idle)
        return others < self._rows, others + background < max(1, self._rows // 2)


BACKGROUND, OTHERS = "yes", "no"
"""Values of the label ``background`` of the rows that came out behind the engine."""

FORGOTTEN_S, RUN_S = 30.0, 5.0
"""After so long a row that was sent to the engine is taken to be there no more, in seconds; where nothing waits there,
after what a run takes."""
