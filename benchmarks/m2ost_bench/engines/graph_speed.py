"""The graph made for engines beside the network's own: nodes, and time a batch in ONNX Runtime on the CPU, interleaved.

- **published**: ``M2OST`` exported as it is trained, layer by layer.
- **fused**: ``FusedM2OST`` in float32, as releases hold it.
- **fused fp16**: the same in float16, which a CPU computes in float32 after converting: here to show what that costs.

Time is given twice: by the clock, and as processor time of all threads, which other programs on the machine do not
lengthen. Views are made ones; a graph does the same work on any.

Usage: python -m m2ost_bench.engines.graph_speed --checkpoint DIR --out DIR
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from m2ost.checkpoint import load
from m2ost.network import M2OST
from m2ost_contract import EXPRESSION
from m2ost_export.fused import FusedM2OST
from m2ost_export.graph import export_onnx
from m2ost_export.onnx_files import describe
from m2ost_export.probes import probe_views
from m2ost_loadtests.machine import describe_machine, spread, write_report
from m2ost_preprocess.engine.onnx import cpu_session

REFERENCE = "published"


def time_batch(session: Any, feed: dict[str, Any]) -> tuple[float, float]:
    """Seconds by the clock and of processor time for one run."""
    clock, processor = time.perf_counter(), time.process_time()
    session.run([EXPRESSION], feed)
    return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    """Export, time in turn, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32], help="rows")
    arguments = parser.parse_args()
    model, card = load(arguments.checkpoint)
    networks: dict[str, M2OST | FusedM2OST] = {
        REFERENCE: model,
        "fused": FusedM2OST(model).eval(),
        "fused fp16": FusedM2OST(model, "fp16").eval(),
    }
    graphs, sessions = {}, {}
    with tempfile.TemporaryDirectory(prefix="m2ost-graphs-") as folder:
        for number, (name, network) in enumerate(networks.items()):
            path = Path(folder) / f"{number}.onnx"
            graphs[name] = describe(export_onnx(network, path))
            sessions[name] = cpu_session(path)
    batches: dict[str, Any] = {}
    for rows in arguments.batch:
        feed = dict(zip(model.config.views.names, probe_views(model.config.views, rows, seed=rows), strict=True))
        outputs = {name: session.run([EXPRESSION], feed)[0] for name, session in sessions.items()}
        times = [{name: time_batch(s, feed) for name, s in sessions.items()} for _ in range(arguments.rounds)]
        batches[str(rows)] = {
            name: {
                "max_abs_diff": float(np.abs(outputs[name] - outputs[REFERENCE]).max()),
                "speed_by_the_clock": spread([t[REFERENCE][0] / t[name][0] for t in times]),
                "speed_by_processor_time": spread([t[REFERENCE][1] / t[name][1] for t in times]),
            }
            for name in sessions
        }
    report = {
        "machine": describe_machine(),
        "checkpoint_sha256": card.sha256,
        "rounds": arguments.rounds,
        "graphs": graphs,
        "speed_as_a_multiple_of": REFERENCE,
        "batches": batches,
    }
    path = write_report(report, arguments.out, "graph_speed")
    lines = []
    for name, facts in graphs.items():
        speeds = (
            f"batch {rows}: {measured[name]['speed_by_the_clock']['median']:.2f}× by the clock, "
            f"{measured[name]['speed_by_processor_time']['median']:.2f}× by processor time"
            for rows, measured in batches.items()
        )
        lines.append(f"{name:12}{facts['nodes']:>6} nodes  {'; '.join(speeds)}")
    print("\n".join([*lines, str(path)]))  # noqa: T201


if __name__ == "__main__":
    main()
