"""An archive's figures in Markdown."""

from __future__ import annotations

from typing import Any

from m2ost_loadtests.rounds import spread_text

_PER = {"describe_s": "slide", "decode_s": "spot", "cut_s": "spot", "infer_s": "spot", "write_s": "slide"}


def to_markdown(report: dict[str, Any]) -> str:
    """Render a report of :func:`m2ost_bench.archive.speed.measure`."""
    machine, resume, archive = report["machine"], report["resume"], report["archive"]
    lines = [
        f"# {report['copies']} copies of {report['slide']}, {report['spots']:,} spots",
        "",
        f"{machine['processor']}, {machine['cores']} cores; pitch {report['pitch_um']:g} µm, {report['batch_rows']} "
        f"spots a request; medians [least … most] of {report['rounds']} rounds in turn on one server.",
        "",
        "| | spots/s |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {spread_text(s)} |" for name, s in report["spots_per_s"].items()),
        "",
        *(f"- {name.replace('_', ' ')}: **{spread_text(s)}**" for name, s in report["ratios"].items()),
        f"- killed after {resume['killed_after_spots']:,} spots: {resume['to_first_new_spot_s']:.1f} s from its start "
        f"to the first new spot, {resume['spots_of_second_run']:,} spots scored in the second run",
        "- client's memory, peak of first and second half, MiB: "
        + "; ".join(f"{first:.0f}, {second:.0f}" for first, second in report["memory_mib"]),
        "",
        "| stage | ms | of one |",
        "|---|---|---|",
        *(
            f"| {name.removesuffix('_s')} | {1e3 * report['stages']['medians'][name]:.1f} | {per} |"
            for name, per in _PER.items()
        ),
        "",
        f"Each on its own; a result of {report['stages']['written_spots']:,} spots was written, without maps.",
        "",
        f"## Projection: {archive['slides']:,} slides of {archive['spots_a_slide']:,} spots",
        "",
        _engine(report["server"]),
        "",
        "| servers | slides a day | days | bound by |",
        "|---|---|---|---|",
        *(
            f"| {row['servers']} | {row['slides_per_day']:,.0f} | {row['days']:,.1f} | {row['bound_by']} |"
            for row in report["projection"]
        ),
        "",
        "Assumed: stages of different slides overlap without loss; slides are read as fast as the copies here; "
        "describing a slide and decoding a spot cost what they do on this slide; one client writes all results, one "
        "at a time.",
        "",
    ]
    return "\n".join(lines)


def _engine(server: dict[str, Any]) -> str:
    tiling = f"{server['decoders']} decoder process{'es' if server['decoders'] != 1 else ''} a server"
    if server["gpu_spots_per_s"] is None:
        return f"Servers without a GPU, each like this machine; {tiling}."
    rate = f"{server['gpu_spots_per_s']:,.0f} spots/s an engine, given ({server['gpu_source']}), not measured here"
    return f"{rate}; tiling as measured here; {tiling}."
