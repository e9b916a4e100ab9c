"""What the gate writes: JSON for programs, Markdown for people, and series for github-action-benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..rounds import Spread
from .thresholds import AT_LEAST
from .verdicts import Measurement, Status, Verdict, status_of

BIGGER, SMALLER = "bigger_is_better.json", "smaller_is_better.json"
"""Files for github-action-benchmark's tools ``customBiggerIsBetter`` and ``customSmallerIsBetter``."""

_MEANING = {
    Status.PASSED: "passed",
    Status.FAILED: "failed: requests failed",
    Status.MISSED: "a threshold was missed",
    Status.NO_BASELINE: "no baseline to compare with",
}


def to_json(measurement: Measurement, verdicts: Sequence[Verdict]) -> str:
    """The whole result."""
    status = status_of(verdicts)
    result = {
        "status": int(status),
        "meaning": _MEANING[status],
        "verdicts": [{**asdict(v), "status": v.status.name} for v in verdicts],
        "measurement": asdict(measurement),
    }
    return json.dumps(result, indent=2, ensure_ascii=False) + "\n"


def to_markdown(measurement: Measurement, verdicts: Sequence[Verdict]) -> str:
    """A table of the verdicts, with what was measured and where."""
    status = status_of(verdicts)
    place = ", ".join(f"{key} {value}" for key, value in measurement.fingerprint.items())
    work = ", ".join(f"{key} {value}" for key, value in measurement.workload.items() if not isinstance(value, dict))
    lines = [f"## Gate: {_MEANING[status]} (exit status {int(status)})", ""]
    lines += ["| | measured | limit | |", "|---|---|---|---|"]
    for v in verdicts:
        sign = "≥" if v.direction == AT_LEAST else "≤"
        measured = "–" if v.measured is None else f"{v.measured:.4g}"
        limit = "–" if v.limit is None else f"{sign} {v.limit:.4g}"
        said = "" if v.status is Status.PASSED else f"**{v.status.name}**: {v.because}"
        lines.append(f"| {v.name} | {measured} | {limit} | {said} |")
    lines += ["", "| absolute, on this machine only | |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} spots/s |" for name, value in measurement.rates.items()]
    lines += [f"| {name} | {value:.1f} ms |" for name, value in measurement.latencies.items()]
    lines += [f"| {reason} | {count} failed requests |" for reason, count in measurement.failures.items()]
    lines += ["", f"Measured on {place}; {work}.", ""]
    return "\n".join(lines)


def series(measurement: Measurement) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Entries for ``customBiggerIsBetter`` and for ``customSmallerIsBetter``: name, value, unit, range, extra."""
    m = measurement
    extra = "\n".join(f"{key}: {value}" for key, value in m.fingerprint.items())

    def entry(name: str, value: float, unit: str, spread: Spread | None = None) -> dict[str, Any]:
        shown = {} if spread is None else {"range": f"{spread['min']:.3f} … {spread['max']:.3f}"}
        return {"name": name, "value": round(value, 4), "unit": unit, **shown, "extra": extra}

    bigger = [entry("served ÷ bare", m.served_over_bare["median"], "ratio", m.served_over_bare)]
    bigger += [entry(f"speed-up over iStar, {v}", s["median"], "ratio", s) for v, s in m.speedups.items()]
    bigger += [entry(name, rate, "spots/s") for name, rate in m.rates.items()]
    for name, count in (("requests in a batch", m.requests_per_batch), ("rows in a batch", m.rows_per_batch)):
        if count is not None:
            bigger.append(entry(name, count, name.split()[0]))
    smaller = [entry("bytes per spot", m.bytes_per_spot, "bytes")]
    if m.p95_over_p50 is not None:
        smaller.append(entry("p95 ÷ p50", m.p95_over_p50, "ratio"))
    smaller += [entry(name, latency, "ms") for name, latency in m.latencies.items()]
    smaller.append(entry("failed requests", sum(m.failures.values()), "requests"))
    return bigger, smaller


def write_results(measurement: Measurement, verdicts: Sequence[Verdict], out: Path) -> list[Path]:
    """Write all of it into a folder; returns the files."""
    bigger, smaller = series(measurement)
    contents = {
        "gate.json": to_json(measurement, verdicts),
        "gate.md": to_markdown(measurement, verdicts),
        BIGGER: json.dumps(bigger, indent=2, ensure_ascii=False) + "\n",
        SMALLER: json.dumps(smaller, indent=2, ensure_ascii=False) + "\n",
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (out / name).write_text(content, encoding="utf-8")
    return [out / name for name in contents]
