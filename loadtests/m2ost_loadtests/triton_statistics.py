"""What a server counted while a load ran: batch sizes reached and time in queues, from its Prometheus metrics.

The same counts as those of Triton's statistics API, which `m2ost serve` closes to clients.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from m2ost_contract import ENGINE_RUNS_METRIC
from m2ost_preprocess.network import read_url

from .errors import TargetError

METRICS_TIMEOUT_S = 5.0
SETTLE_S, SETTLE_READS = 0.1, 20

_LINE = re.compile(rf"^(nv_inference_\w+|{ENGINE_RUNS_METRIC})\{{([^}}]*)\}} ([0-9.e+]+)$", re.MULTILINE)
_MODEL = re.compile(r'\bmodel="([^"]*)"')

Counts = Mapping[str, Mapping[str, float]]
"""Model → metric → value."""


def read_metrics(url: str) -> Counts:
    """Every ``nv_inference_…`` metric and the engine's runs by model, added up over versions and reasons.

    Raises
    ------
    TargetError
        If nothing answers at ``url``.
    """
    try:
        return parse_metrics(read_url(url, METRICS_TIMEOUT_S))
    except OSError as error:
        raise TargetError(
            f"{error}; give the address that the server prints, such as "
            "http://localhost:8002/metrics, with --metrics-url"
        ) from error


def read_settled_metrics(url: str) -> Counts:
    """As :func:`read_metrics`, once they stand still: Triton counts a request a moment after it has answered it.

    Where others keep the server busy they never do; the last are taken then.
    """
    latest = read_metrics(url)
    for _ in range(SETTLE_READS):
        time.sleep(SETTLE_S)
        before, latest = latest, read_metrics(url)
        if latest == before:
            break
    return latest


def parse_metrics(page: str) -> Counts:
    """The metrics in the Prometheus text format."""
    counts: dict[str, dict[str, float]] = {}
    for metric, labels, value in _LINE.findall(page):
        model = _MODEL.search(labels)
        if model:
            of_model = counts.setdefault(model[1], {})
            of_model[metric] = of_model.get(metric, 0.0) + float(value)
    return counts


def server_figures(before: Counts, after: Counts) -> dict[str, dict[str, Any]]:
    """What each model did between two readings.

    The supervisor's probes are in it: one row every five seconds.

    Returns
    -------
    dict
        Model → ``requests``, ``failed``, ``rows``, ``executions``; ``rows_per_execution`` (the batch size reached) and
        ``requests_per_execution``; ``request_s``, the seconds that requests spent in the server, added up (divided by
        the load's length: how many were there at once); ``queue_ms`` and ``compute_ms``, the mean of a request. Models
        that executed nothing are left out.
    """
    figures: dict[str, dict[str, Any]] = {}
    for model, latest in sorted(after.items()):
        earlier = before.get(model, {})

        def grown(metric: str, latest: Mapping[str, float] = latest, earlier: Mapping[str, float] = earlier) -> float:
            return latest.get(metric, 0.0) - earlier.get(metric, 0.0)

        # An engine that takes requests as they come joins them itself: Triton sees one request an execution.
        runs = ENGINE_RUNS_METRIC if ENGINE_RUNS_METRIC in latest else "nv_inference_exec_count"
        executions, requests = grown(runs), grown("nv_inference_request_success")
        if executions <= 0 or requests <= 0:
            continue
        figures[model] = {
            "requests": int(requests),
            "failed": int(grown("nv_inference_request_failure")),
            "rows": int(grown("nv_inference_count")),
            "executions": int(executions),
            "rows_per_execution": grown("nv_inference_count") / executions,
            "requests_per_execution": requests / executions,
            "request_s": grown("nv_inference_request_duration_us") / 1e6,
            "queue_ms": grown("nv_inference_queue_duration_us") / requests / 1e3,
            "compute_ms": grown("nv_inference_compute_infer_duration_us") / requests / 1e3,
        }
    return figures
