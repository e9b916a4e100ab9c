"""The comparison with iStar as people read it: a table, and a bar chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_NO = "–"


def to_markdown(report: dict[str, Any]) -> str:
    """The table, with everything that a figure depends on around it."""
    machine, precision = report["machine"], report["precision"]
    weights = "its published weights" if report["istar_pretrained"] else "random weights: speed only, no accuracy"
    width, height = report["size_px"]
    lines = [
        f"# M2OST and iStar on {report['slide']}",
        "",
        f"{width}×{height} px at {report['mpp']:g} µm/px, {report['spots']} spots; {machine['cores']} cores "
        f"of {machine['processor']}; {report['device']}, M2OST {precision['m2ost']}, iStar {precision['istar']} "
        f"({weights}).",
        f"Each system and its decoder hold at most {report['memory_cap_mib']:.0f} MiB resident, with the largest batch "
        f"that fits; medians [range] of {report['rounds']} interleaved rounds. A speed-up is iStar's "
        "seconds over M2OST's.",
        "",
        "| system | places | batch | seconds a slide | GFLOP/s | speed-up, slide reading included | excluded | "
        "M2OST at every superpixel |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, system in report["systems"].items():
        scaled = "scaled" if system["sampled"] else "whole"
        cells = [
            name,
            f"{system['places']:,}",
            str(system["batch_rows"] or _NO),
            f"{_spread(system['seconds'])} ({scaled})",
            _spread(system.get("gflop_per_s")),
            _spread(report["speedups"].get(name), "×"),
            _spread(report["speedups_without_reading"].get(name), "×"),
            _spread(report["dense"].get(name), "×"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    superpixels = ", ".join(f"{name}: {count:,}" for name, count in report["superpixels"].items())
    shares = ", ".join(f"{share:.2f} ({name})" for name, share in report["gflop_share_of_m2ost"].items())
    verdict = "fair" if report["fair"] else "NOT fair"
    lines += [
        "",
        *_samples(report),
        "The last column asks of M2OST a prediction at every superpixel where that variant makes one "
        f"({superpixels}), from its seconds a spot; below 1× iStar is faster.",
        f"iStar reached {shares} of M2OST's GFLOP/s; by the limit of 0.7 the comparison is {verdict}.",
    ]
    if "refined" in report:
        lines += ["", *_refined(report["refined"])]
    return "\n".join(lines) + "\n"


def _refined(refined: dict[str, Any]) -> list[str]:
    """The ratios of maps with a tolerance."""
    where = f"{refined['slide']}, " + (f"region {refined['region']}" if refined["region"] else "all of it")
    lines = [
        f"The same with a tolerance, as the map of {where} needs it, {refined['pitch_px']} px apart:",
        "",
        "| system | M2OST's cells | tolerance | places a prediction | r per gene with the exact map, median | lowest "
        "| M2OST is faster |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in refined["rows"]:
        r = row["r_per_gene"]
        lines.append(
            f"| {row['system']} | {row['cells']} | {row['tolerance_sd']:g} sd | {row['places_per_prediction']:.2f} "
            f"| {r['median']:.4f} | {r['lowest']:.4f} | {_spread(row['ratio'], '×')} |"
        )
    return lines


def _spread(value: dict[str, float] | None, unit: str = "") -> str:
    if value is None:
        return _NO
    return f"**{_figure(value['median'])}{unit}** [{_figure(value['min'])} … {_figure(value['max'])}]"


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _samples(report: dict[str, Any]) -> list[str]:
    """What was run of the systems that were not run whole."""
    lines = []
    for name, runs in report["timings"].items():
        stages = [s for s in runs[0]["stages"] if s["sampled"] < s["total"]]
        if stages:
            parts = ", ".join(f"{s['sampled']:,} of {s['total']:,} {s['unit']} ({s['stage']})" for s in stages)
            lines += [f"{name}, a round: {parts}; each stage is scaled by its own count.", ""]
    return lines


def draw(report: dict[str, Any], out: Path) -> None:
    """Seconds a slide as bars on a logarithmic axis, with their range.

    Parameters
    ----------
    report : dict
        Of :func:`m2ost_bench.istar.comparison.compare`.
    out : Path
        PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(report["systems"])
    values = [report["systems"][name]["seconds"] for name in names]
    medians = [v["median"] for v in values]
    errors = [[m - v["min"] for m, v in zip(medians, values, strict=True)]]
    errors.append([v["max"] - m for m, v in zip(medians, values, strict=True)])
    colours = ["tab:blue" if name.startswith("m2ost") else "tab:gray" for name in names]
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(names) + 1.4), layout="constrained")
    bars = axis.barh(names, medians, xerr=errors, color=colours, capsize=3)
    labels = []
    for name, median in zip(names, medians, strict=True):
        speedup = report["speedups"].get(name)
        labels.append(f"{_figure(median)} s" + (f", M2OST {_figure(speedup['median'])}× faster" if speedup else ""))
    axis.bar_label(bars, labels, padding=8)
    axis.set(xscale="log", xlabel="seconds a slide, reading included", xlim=(min(medians) / 2, max(medians) * 30))
    where = f"{report['memory_cap_mib']:.0f} MiB, {report['machine']['processor']}"
    axis.set_title(f"{report['slide']}, {report['spots']} spots, {where}", fontsize=9)
    axis.invert_yaxis()
    figure.savefig(out, dpi=110)
    plt.close(figure)
