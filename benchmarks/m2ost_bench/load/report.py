"""A deployment's loads in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m2ost_loadtests.rounds import spread_text


def to_markdown(report: Mapping[str, Any]) -> str:
    """Render a report of :func:`m2ost_bench.load.measure.measure`."""
    machine, overload, capacity = report["machine"], report["overload"], report["capacity_spots_per_s"]
    rounds = [(name, step) for name, steps in overload["steps"].items() for step in steps]
    knee, release = report["knee_spots_per_s"], report["release"]
    lines = [
        "# A deployment under load",
        "",
        f"{machine['processor']}, {machine['cores']} cores; {release['name']} in {release['precision']}, "
        f"{release['genes']} genes, on {report['slide']}. Locust: a master and {report['workers']} workers, "
        f"{report['users']} users, requests of {report['spots_a_request']} spots, {report['seconds']:g} s a load, "
        "random arrivals in open loads.",
        "",
        "| load | offered spots/s | answered spots/s | p50 ms | p95 ms | p99 ms | spots a batch | requests | refused |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(step["load"], step, capacity) for step in report["steps"]),
        *(_row(name, step, capacity) for name, step in rounds),
        "",
        f"- capacity: {capacity:.1f} spots/s",
        f"- knee: {f'{knee:.1f} spots/s' if knee else 'below the lightest step'}, the highest offered load at which "
        "nothing was refused and p95 was no longer than in the closed load",
        f"- goodput ÷ capacity at {overload['times']:g} times the capacity: "
        f"**{spread_text(overload['goodput_over_capacity'])}**, {report['rounds']} rounds in turn",
        *_by_processor(overload),
        "- an answer differs from a direct prediction by at most "
        f"{max(step['max_abs_diff'] or 0.0 for step in [*report['steps'], *(s for _, s in rounds)]):.2g}",
        *(f"- FAULT: {fault}" for fault in report["faults"]),
        "",
    ]
    return "\n".join(lines)


def _by_processor(overload: Mapping[str, Any]) -> list[str]:
    ratio = overload.get("goodput_over_capacity_by_processor_time")
    return [f"- the same by the server's processor time: **{spread_text(ratio)}**"] if ratio else []


def _row(name: str, step: Mapping[str, Any], capacity: float) -> str:
    offered, latency, batch = step["offered_spots_per_s"], step["latency_s"], step["rows_a_batch"]
    share = "–" if offered is None else f"{offered:.1f} ({offered / capacity:.2f})"
    times = [f"{1e3 * latency[p]:,.0f}" if latency else "–" for p in ("p50", "p95", "p99")]
    refused = ", ".join(f"{count} {reason}" for reason, count in step["refused"].items()) or "0"
    cells = [name, share, f"{step['answered_spots_per_s']:.1f}", *times]
    cells += ["–" if batch is None else f"{batch:.1f}", f"{step['requests']}", refused]
    return f"| {' | '.join(cells)} |"
