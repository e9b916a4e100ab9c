"""Command line: ``python -m m2ost_bench.tiler --slide FILE --release DIR --out DIR``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from m2ost_loadtests.errors import LoadTestError
from m2ost_loadtests.machine import describe_machine, write_report
from m2ost_preprocess.errors import PreprocessError

from .measure import compare_tilers, compare_whole_path, lower_levels
from .ways import OURS


def table(report: dict[str, Any]) -> list[str]:
    """The report in lines, for a terminal and in Markdown."""
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
        f"{whole['median']:.3f} [{whole['min']:.3f} … {whole['max']:.3f}] of it"
    )
    lower = report["lower_levels"]
    share = lower["decoded_px"]["lower levels"] / lower["decoded_px"]["level 0"]
    lines.append(
        f"--pyramid, {lower['spots']} spots: {share:.2f} of the pixels decoded, "
        f"{lower['times_as_fast']['median']:.1f} times as fast on one core; r per gene with the definition's "
        f"views at least {lower['r_per_gene']['min']:.4f}, differences up to {lower['max_difference_sd']:.2f} standard "
        "deviations"
    )
    return lines


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, required=True, help="a tiled slide that carries µm/px, with a pyramid")
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pitch-um", type=float, default=100.0, help="of the whole path's grid")
    parser.add_argument("--drift-spots", type=int, default=128)
    arguments = parser.parse_args()
    try:
        report = {
            "machine": describe_machine(),
            "slide": arguments.slide.name,
            "rounds": arguments.rounds,
            "layouts": compare_tilers(
                arguments.slide,
                arguments.rounds,
                lambda name: print(name, file=sys.stderr),  # noqa: T201
            ),
            "whole_path": compare_whole_path(arguments.release, arguments.slide, arguments.pitch_um, arguments.rounds),
            "lower_levels": lower_levels(arguments.release, arguments.slide, arguments.drift_spots, arguments.rounds),
        }
    except (LoadTestError, PreprocessError) as error:
        raise SystemExit(f"error: {error}") from error
    written = write_report(report, arguments.out, "tiler")
    print("\n".join([*table(report), str(written)]))  # noqa: T201


if __name__ == "__main__":
    main()
