"""The report of a load: JSON for programs, CSV and HTML for people."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_MS = 1e3
_COLUMNS = {
    "requests": "requests",
    "failed": "failed",
    "spots": "spots",
    "req/s": "requests_per_s",
    "spots/s": "spots_per_s",
    "p50 ms": "p50_ms",
    "p95 ms": "p95_ms",
    "p99 ms": "p99_ms",
    "max ms": "max_ms",
    "B/spot": "bytes_per_spot",
}
"""Heads of the table for a terminal, and the figures below them."""


@dataclass(frozen=True)
class LoadReport:
    """What a load came to.

    Parameters
    ----------
    address : str
        ``host:port`` of the server.
    server : str
        Its name and version.
    users : list of str
        Classes of users.
    slides : dict of str to int
        Slide → spots of its grid.
    load : dict
        The options: fields of :class:`~m2ost_loadtests.load.workload.Load`.
    priority : dict of str to int
        Model → priority levels of its queue; where 0, no request carried a priority.
    elapsed_s : float
        From the first request's intended start to the last answer, in seconds.
    offered : dict
        While requests were due: ``seconds``, ``requests``, ``requests_per_s``, and ``answered_spots_per_s``, which
        leaves out what was answered after the last of them was due.
    all : dict
        Figures over all requests (:meth:`~m2ost_loadtests.load.load_statistics.Series.summary`).
    by_name : dict
        The same for each model and class of traffic.
    stages : list of dict
        The same for each stage of a step load.
    models : dict
        What each of the server's models did meanwhile (:func:`~m2ost_loadtests.triton_statistics.server_figures`);
        empty without ``--metrics-url``.
    """

    address: str
    server: str
    users: list[str]
    slides: dict[str, int]
    load: dict[str, Any]
    priority: dict[str, int]
    elapsed_s: float
    offered: dict[str, Any]
    all: dict[str, Any]
    by_name: dict[str, dict[str, Any]]
    stages: list[dict[str, Any]]
    models: dict[str, dict[str, Any]]

    def to_json(self) -> str:
        """The whole report."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> LoadReport:
        """Inverse of :meth:`to_json`, from a file."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def rows(self) -> Iterator[dict[str, Any]]:
        """One flat row for each name, then for all, then for each stage."""
        named = [*self.by_name.items(), ("all", self.all)]
        named += [(f"step of {stage['users']} users", stage) for stage in self.stages]
        for name, figures in named:
            latency = figures["latency_s"] or {}
            yield {
                "name": name,
                "requests": figures["requests"],
                "failed": figures.get("failed"),
                "spots": figures["spots"],
                "requests_per_s": _rounded(figures["requests_per_s"]),
                "spots_per_s": _rounded(figures["spots_per_s"]),
                **{f"{key}_ms": _rounded(latency.get(key), _MS) for key in ("p50", "p95", "p99", "max")},
                "bytes_per_spot": _rounded(figures.get("bytes_per_spot")),
                "unanswered_at_the_end": figures.get("unanswered_at_the_end"),
            }

    def to_csv(self) -> str:
        """:meth:`rows` as CSV."""
        rows = list(self.rows())
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def to_text(self) -> str:
        """A table for a terminal."""
        rows = list(self.rows())
        width = max(len(row["name"]) for row in rows)
        lines = [" " * width + "".join(f"{head:>10}" for head in _COLUMNS)]
        lines += [
            f"{row['name']:{width}}" + "".join(f"{_shown(row[key]):>10}" for key in _COLUMNS.values()) for row in rows
        ]
        for model, figures in self.models.items():
            lines.append(
                "{}: {rows_per_execution:.1f} rows and {requests_per_execution:.1f} requests an execution, "
                "{queue_ms:.1f} ms in the queue, {compute_ms:.1f} ms computing".format(model, **figures)
            )
        lines += [f"{count} failed: {reason}" for reason, count in self.all["failures"].items()]
        lines += [f"{count} spots without a value: {name}" for name, count in self.all["spots_without_value"].items()]
        if self.all["unanswered_at_the_end"]:
            lines.append(f"{self.all['unanswered_at_the_end']} requests were unanswered when the load ended")
        lag = self.all["send_lag_s"]
        if self.load["arrival_rate"] and lag:
            lines.append(
                f"requests left {lag['p99'] * _MS:.1f} ms (p99) after they were due; their latencies include it"
            )
        if not any(self.priority.values()):
            lines.append("no priority was sent: the served queues have no priority levels")
        return "\n".join(lines)

    def to_html(self) -> str:
        """A section to put into Locust's own page."""
        text = html.escape(self.to_text())
        return f'<section style="padding:1em 2em"><h2>Spots</h2><pre style="overflow-x:auto">{text}</pre></section>'


def _rounded(value: float | None, factor: float = 1.0) -> float | None:
    return None if value is None else round(value * factor, 3)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
