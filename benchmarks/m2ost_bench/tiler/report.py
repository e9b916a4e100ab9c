"""The report of the tilers as people read it."""

from __future__ import annotations

from typing import Any

from m2ost_loadtests.rounds import spread_text

from .ways import OURS


def to_markdown(report: dict[str, Any]) -> str:
    """Layouts as a table, then the whole path and the lower levels in words."""
    others = list(report["layouts"][0]["times_as_fast"])
    columns = [report["slide"], "spots", *(f"ms, {way}" for way in OURS), "decoded ÷ needed", *others]
    lines = [f"| {' | '.join(columns)} |"]
    lines.append("|---" * len(columns) + "|")
    for row in report["layouts"]:
        ratios = [row["times_as_fast"][way] for way in others]
        cells = [f"**{x['median']:.1f}×** [{x['min']:.1f} … {x['max']:.1f}]" for x in ratios]
        ms = " | ".join(f"{row['ms_a_spot'][way]['median']:.2f}" for way in OURS)
        counted = f"{row['spots']:,} | {ms} | {row['decoded_over_needed']:.3f}"
        lines.append(f"| {row['layout']} | {counted} | {' | '.join(cells)} |")
    whole = report["whole_path"]["slower_half_over_whole"]
    lines.append(
        f"\nfile to table, {report['whole_path']['spots']} spots: the slower of bare inference and bare decoding takes "
        f"{spread_text(whole, '.3f')} of it"
    )
    lower = report["lower_levels"]
    share = lower["decoded_px"]["lower levels"] / lower["decoded_px"]["level 0"]
    lines.append(
        f"\n--pyramid, {lower['spots']} spots: {share:.2f} of the pixels decoded, "
        f"{lower['times_as_fast']['median']:.1f} times as fast on one core; r per gene with the definition's "
        f"views at least {lower['r_per_gene']['min']:.4f}, differences up to {lower['max_difference_sd']:.2f} standard "
        "deviations"
    )
    return "\n".join(lines) + "\n"
