"""Engines of a release on a CPU, interleaved in one run on the views of real spots: how fast, and how true.

Every engine is a process of its own (:mod:`.cpu_engines`); in each round each scores one batch, in turn. Speed is a
ratio to ONNX Runtime with the published graph as it is, of the same round: by the clock, and by processor time, which
other programs on the machine hardly lengthen. Truth is r per gene against PyTorch in float32 over all spots, judged as
a reduced precision is at export.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from m2ost.checkpoint import load
from m2ost.metrics import pearson
from m2ost_contract import BODY_FILE, ONNX_FILE, TAIL_FILE, Manifest
from m2ost_export.gate import MIN_R_GENE
from m2ost_export.graph import export_onnx
from m2ost_export.onnx_files import with_attention
from m2ost_export.probes import slide_views
from m2ost_loadtests.errors import LoadTestError
from m2ost_loadtests.machine import cpu_instructions, describe_machine, versions
from m2ost_loadtests.rounds import interleave, spread, spread_text

from .cpu_engines import PLAIN, REFERENCE, EngineProcess, Subject, engines

CLOCK, PROCESSOR = "by_the_clock", "by_processor_time"
RUNTIMES = ("onnxruntime", "openvino", "torch")


@dataclass(frozen=True, kw_only=True)
class EngineSpeedOptions:
    """What to measure.

    Parameters
    ----------
    release : Path
        In float32.
    checkpoint : Path
        What it was exported from.
    slide : Path
        Whose spots are scored.
    spots : Path, optional
        A spot file; by default a grid over the tissue.
    threads : sequence of int
        Numbers of threads.
    batches : sequence of int
        Rows of the batches that are timed.
    rounds : int
        Rounds a batch; in each, every engine runs once.
    most_spots : int
        Most spots that truth is judged on.
    only : sequence of str
        Names of the engines, besides the two that all are compared with; all by default.
    """

    release: Path
    checkpoint: Path
    slide: Path
    spots: Path | None = None
    threads: Sequence[int]
    batches: Sequence[int] = (1, 16, 32)
    rounds: int = 7
    most_spots: int = 64
    only: Sequence[str] = ()


def measure(options: EngineSpeedOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all engines in turn.

    Raises
    ------
    LoadTestError
        If the release is not one in float32 of this checkpoint, an engine is not known, or its process dies.
    """
    manifest = Manifest.read(options.release)
    model, card = load(options.checkpoint)
    if manifest.engine.checkpoint_sha256 != card.sha256 or manifest.engine.precision != "fp32":
        raise LoadTestError(
            f"{options.release} is not a float32 release of {options.checkpoint}; "
            f"run: m2ost export {options.checkpoint} --out NEW_RELEASE"
        )
    known = engines()
    unknown = sorted(set(options.only) - set(known))
    if unknown:
        raise LoadTestError(f"no engine {', '.join(unknown)}; there are: {', '.join(known)}")
    names = [n for n in known if not options.only or n in options.only or n in (PLAIN, REFERENCE)]
    views = slide_views(options.slide, model.config.views, spots=options.spots, most=options.most_spots)
    with tempfile.TemporaryDirectory(prefix="m2ost-engines-") as folder:
        published, attention = Path(folder) / "published.onnx", Path(folder) / "attention.onnx"
        spots = Path(folder) / "spots.npz"
        export_onnx(model, published)
        release_graph = options.release / ONNX_FILE
        onnx.save(with_attention(onnx.load(release_graph)), attention)
        np.savez(spots, *views)
        body, tail = options.release / BODY_FILE, options.release / TAIL_FILE
        subject = Subject(published, release_graph, attention, body, tail, options.checkpoint, model.config.views)
        found = [_with_threads(n, names, subject, spots, options, say) for n in options.threads]
    return {
        "machine": describe_machine(),
        "instructions": cpu_instructions(),
        "versions": versions(RUNTIMES),
        "slide": options.slide.name,
        "spots": len(views[0]),
        "rounds": options.rounds,
        "order": [name for name in names if name not in found[-1]["refused"]],
        "speed_as_a_multiple_of": PLAIN,
        "min_r_gene": MIN_R_GENE,
        "engines": {name: known[name][0] for name in names},
        "truth": _truth({name: e for name, e in found[-1]["expression"].items()}, card.genes),
        "speed": {str(n): f["speed"] for n, f in zip(options.threads, found, strict=True)},
        "seconds_of_reference": {str(n): f["seconds"] for n, f in zip(options.threads, found, strict=True)},
        "refused": found[-1]["refused"],
    }


def _with_threads(
    threads: int,
    names: Sequence[str],
    subject: Subject,
    spots: Path,
    options: EngineSpeedOptions,
    say: Callable[[str], None],
) -> dict[str, Any]:
    with ExitStack() as stack:
        started = [stack.enter_context(EngineProcess(name, subject, threads, spots)) for name in names]
        refused = {e.name: e.refusal for e in started if e.refusal}
        running = [e for e in started if not e.refusal]
        missing = {PLAIN, REFERENCE} & set(refused)
        if missing:
            raise LoadTestError("; ".join(f"{name}: {refused[name]}" for name in missing))
        say(f"{threads} thread(s): {len(running)} engines ready")
        # Also the warm-up, at a batch of the usual size.
        expression = {e.name: e.expression() for e in running}
        speed: dict[str, Any] = {}
        seconds = {}
        for batch in options.batches:
            for engine in running:
                engine.seconds(batch)
            timed = interleave({e.name: partial(e.seconds, batch) for e in running}, options.rounds)
            clock, processor = timed.map(lambda s: s.clock), timed.map(lambda s: s.processor)
            ratios = {CLOCK: clock.ratios(PLAIN), PROCESSOR: processor.ratios(PLAIN)}
            speed[str(batch)] = {e.name: {by: found[e.name] for by, found in ratios.items()} for e in running}
            seconds[str(batch)] = spread(clock.found[PLAIN])
            say(f"{threads} thread(s), batch {batch}: done")
    return {"expression": expression, "speed": speed, "seconds": seconds, "refused": refused}


def _truth(expression: dict[str, Any], genes: Sequence[str]) -> dict[str, Any]:
    reference = expression[REFERENCE]
    truth = {}
    for name, found in expression.items():
        r = pearson(reference, found, 0)
        # A gene that the reference holds constant on these spots tells nothing.
        worst = int(np.where(np.isnan(r), np.inf, r).argmin())
        finite = bool(np.isfinite(found).all())
        truth[name] = {
            "min_r_gene": float(r[worst]) if finite else None,
            "worst_gene": genes[worst],
            "genes_below": int((r < MIN_R_GENE).sum()),
            "max_abs_diff": float(np.abs(found - reference).max()) if finite else None,
            "passed": finite and bool(r[worst] >= MIN_R_GENE),
        }
    return truth


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a table, one row an engine."""
    columns = [(n, b) for n, batches in report["speed"].items() for b in batches]
    head = ["engine", *(f"{n} thread{'s' if n != '1' else ''}, batch {b}" for n, b in columns)]
    head += ["r per gene, lowest", "most apart", f"≥ {report['min_r_gene']}"]
    lines = [" | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    for name in report["engines"]:
        if name in report["refused"]:
            continue
        cells = [name]
        for n, b in columns:
            speed = report["speed"][n][b][name]
            clock, processor = speed[CLOCK], speed[PROCESSOR]
            cells.append(f"{spread_text(clock, '.2f', '×')}, {processor['median']:.2f}×")
        truth = report["truth"][name]
        lowest, apart = truth["min_r_gene"], truth["max_abs_diff"]
        cells += ["not finite", "–"] if lowest is None else [f"{lowest:.6f} ({truth['worst_gene']})", f"{apart:.1e}"]
        cells.append("yes" if truth["passed"] else f"no, {truth['genes_below']} genes below")
        lines.append("| " + " | ".join(cells) + " |")
    versions = ", ".join(f"{name} {found}" for name, found in report["versions"].items())
    machine = report["machine"]
    instructions = ", ".join(report["instructions"]) or "none of those looked for"
    bf16 = "has" if any("bf16" in i for i in report["instructions"]) else "has no"
    notes = [
        f"{report['spots']} spots of {report['slide']}; {report['rounds']} interleaved rounds; {machine['processor']}, "
        f"{machine['cores']} cores; {versions}.",
        f"The processor {bf16} bfloat16 arithmetic; instructions: {instructions}.",
        f"Speed: multiple of {report['speed_as_a_multiple_of']!r} in the same round, median [range] by the clock, then "
        "median by processor time of all threads, which other programs on the machine hardly lengthen.",
        *(f"{name!r} did not run: {why}" for name, why in report["refused"].items()),
    ]
    return "\n".join([*lines, "", *notes]) + "\n"
