"""The gate's decision. Pure: what was measured, the thresholds and a baseline in; verdicts and an exit status out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from m2ost_contract import write_complete

from ..errors import BaselineError, ThresholdsError
from ..rounds import Spread
from .thresholds import AT_LEAST, AT_MOST, Limit, Thresholds


class Status(IntEnum):
    """Exit status of the gate; where several apply, the first of FAILED, MISSED, NO_BASELINE."""

    PASSED = 0
    FAILED = 1
    MISSED = 3
    NO_BASELINE = 4


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one run of the gate measured.

    Parameters
    ----------
    served_over_bare : Spread
        Ratio of spots/s, over rounds.
    requests_per_batch, rows_per_batch : float or None
        Requests and rows in an execution of the engine; None where the server's metrics were not read.
    bytes_per_spot : float
    p95_over_p50 : float or None
        None where no request was answered.
    failures : dict of str to int
        Failed requests by reason.
    speedups : dict of str to Spread
        Variant of iStar → M2OST's spots/s over its, over rounds.
    rates : dict of str to float
        Absolute figures of which more is better, in spots/s.
    latencies : dict of str to float
        Absolute figures of which less is better, in ms.
    workload : dict
        What was measured: absolute figures of another workload say nothing.
    fingerprint : dict
        Where it was measured: likewise.
    """

    served_over_bare: Spread
    requests_per_batch: float | None
    rows_per_batch: float | None
    bytes_per_spot: float
    p95_over_p50: float | None
    failures: Mapping[str, int]
    rates: Mapping[str, float]
    latencies: Mapping[str, float]
    workload: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    speedups: Mapping[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """Absolute figures of an earlier run.

    Parameters
    ----------
    rates, latencies, workload, fingerprint
        As in :class:`Measurement`.
    """

    rates: Mapping[str, float]
    latencies: Mapping[str, float]
    workload: Mapping[str, Any]
    fingerprint: Mapping[str, Any]

    @classmethod
    def of(cls, measurement: Measurement) -> Baseline:
        """The baseline that a run leaves behind."""
        return cls(measurement.rates, measurement.latencies, measurement.workload, measurement.fingerprint)

    def write(self, path: Path) -> None:
        """Write it as JSON; whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_complete(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Baseline | None:
        """Inverse of :meth:`write`; None where there is no file.

        Raises
        ------
        BaselineError
            If the file is damaged.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            rates, latencies = ({k: float(v) for k, v in raw[name].items()} for name in ("rates", "latencies"))
            return cls(rates, latencies, dict(raw["workload"]), dict(raw["fingerprint"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BaselineError(f"{path}: not a baseline ({error!r}); write one with --write-baseline") from error


@dataclass(frozen=True)
class Verdict:
    """One comparison.

    Parameters
    ----------
    name : str
    measured : float or None
    limit : float or None
        None where there is nothing to compare with.
    direction : str
        ``at_least`` or ``at_most``.
    status : Status
        What it comes to.
    because : str
        Why the limit stands where it does, or why there is none.
    """

    name: str
    measured: float | None
    limit: float | None
    direction: str
    status: Status
    because: str

    def __str__(self) -> str:
        words = {AT_LEAST: "at least", AT_MOST: "at most"}[self.direction]
        if self.limit is None:
            return f"{self.name}: {self.because}"
        measured = "not measured" if self.measured is None else f"{self.measured:.4g}"
        said = f"{self.name}: {measured}, {words} {self.limit:.4g}"
        return said if self.status is Status.PASSED else f"{said}: MISSED. {self.because}"


def check_measurable(thresholds: Thresholds, speedups: Iterable[str], *, has_metrics: bool) -> None:
    """Check, before anything is measured, that all that the thresholds ask for will be.

    Parameters
    ----------
    thresholds : Thresholds
    speedups : iterable of str
        Variants of iStar that are measured.
    has_metrics : bool
        Whether the server's metrics are read.

    Raises
    ------
    ThresholdsError
        If not; says which option to give.
    """
    measured = set(speedups)
    for variant in thresholds.speedup_over_istar:
        if variant not in measured:
            have = f"it holds {', '.join(sorted(measured))}" if measured else "none was given"
            raise ThresholdsError(
                f"the thresholds ask for the speed-up over iStar of variant {variant!r}, which is not measured "
                f"({have}); give it with --speedups FILE (as `m2ost bench istar` writes it), or take the threshold out"
            )
    if thresholds.requests_per_batch is not None and not has_metrics:
        raise ThresholdsError(
            "the thresholds ask for requests_per_batch, which the server's metrics count; give their address with "
            "--metrics-url, or take the threshold out"
        )


def judge(
    measurement: Measurement, thresholds: Thresholds, *, baseline: Baseline | None, asked_for_baseline: bool
) -> list[Verdict]:
    """Compare a run with the thresholds and, where it is asked for, with a baseline.

    Parameters
    ----------
    measurement : Measurement
    thresholds : Thresholds
    baseline : Baseline or None
        None where there is none.
    asked_for_baseline : bool
        Whether one was asked for.
    """
    m, t = measurement, thresholds
    failed = sum(m.failures.values())
    verdicts = [
        *_compare("served ÷ bare", m.served_over_bare["median"], t.served_over_bare, AT_LEAST),
        *(
            verdict
            for variant, limit in t.speedup_over_istar.items()
            for verdict in _compare(f"speed-up over iStar, {variant}", m.speedups[variant]["median"], limit, AT_LEAST)
        ),
        *_compare("requests in a batch", m.requests_per_batch, t.requests_per_batch, AT_LEAST),
        *_compare("bytes per spot", m.bytes_per_spot, t.bytes_per_spot, AT_MOST),
        *_compare("p95 ÷ p50", m.p95_over_p50, t.p95_over_p50, AT_MOST),
        *_compare("failed requests", failed, t.failed_requests, AT_MOST, Status.FAILED),
    ]
    if asked_for_baseline:
        verdicts += _compare_with(baseline, m, t.baseline_tolerance)
    return verdicts


def status_of(verdicts: Iterable[Verdict]) -> Status:
    """What several verdicts come to."""
    found = {verdict.status for verdict in verdicts}
    return next((s for s in (Status.FAILED, Status.MISSED, Status.NO_BASELINE) if s in found), Status.PASSED)


def _compare(
    name: str, measured: float | None, limit: Limit | None, direction: str, otherwise: Status = Status.MISSED
) -> list[Verdict]:
    if limit is None:
        return []
    holds = measured is not None and math.isfinite(measured)
    if holds and measured is not None:
        holds = measured >= limit.value if direction == AT_LEAST else measured <= limit.value
    return [Verdict(name, measured, limit.value, direction, Status.PASSED if holds else otherwise, limit.because)]


def _compare_with(baseline: Baseline | None, m: Measurement, tolerance: Limit | None) -> list[Verdict]:
    def none(why: str) -> list[Verdict]:
        return [Verdict("baseline", None, None, AT_LEAST, Status.NO_BASELINE, why)]

    if tolerance is None:
        raise ThresholdsError("a comparison with a baseline needs `baseline_tolerance` in the thresholds file")
    if baseline is None:
        return none("there is none; write one on this machine with --write-baseline")
    for what, then, now in (
        ("on another machine", baseline.fingerprint, m.fingerprint),
        ("on another workload", baseline.workload, m.workload),
    ):
        different = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
        if different:
            facts = ", ".join(f"{key} {then.get(key)!r}, now {now.get(key)!r}" for key in different)
            return none(f"it was measured {what} ({facts}); write one here with --write-baseline")
    share, because = tolerance.value, tolerance.because
    verdicts = []
    for name, rate in m.rates.items():
        limit = Limit(baseline.rates[name] * (1 - share), because) if name in baseline.rates else None
        verdicts += _compare(f"{name} (baseline less {share:.0%})", rate, limit, AT_LEAST)
    for name, latency in m.latencies.items():
        limit = Limit(baseline.latencies[name] * (1 + share), because) if name in baseline.latencies else None
        verdicts += _compare(f"{name} (baseline plus {share:.0%})", latency, limit, AT_MOST)
    return verdicts
