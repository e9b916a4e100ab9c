"""What a real Prometheus learns of a real server under load: ``python -m tests.scrape --release DIR --slide FILE``.

Prints a table, a row for each number of clients and one for the time after them, and ends with status 1 where a metric
does not tell the truth.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from m2ost_client import ServerOptions, TritonServer
from m2ost_loadtests.load.closed_load import run_closed_load
from m2ost_loadtests.load.workload import Load
from m2ost_loadtests.machine import describe_machine
from m2ost_preprocess.slides import SlideRoots

from tests.support.machine import wait_for
from tests.support.prometheus import Prometheus, prometheus

CLIENTS = (0, 1, 4, 16, 64)
SPOTS = 4
"""Spots a request: 64 clients have no more of them under way than the server lets wait."""

BUSY, AT_REST = 0.5, 0.1
"""Saturation of an engine that works more than it waits, and of one that only probes ask."""

SETTLE_S = 60.0
"""Within this all signs of a load have gone, in seconds."""

FAILED = 'sum(increase(nv_inference_request_failure{model=~"m2ost_slide|slide_tiler|slide_info"}[WINDOW]))'
COLUMNS = {
    "spots/s": "sum(rate(m2ost_guarded_rows_total[WINDOW]))",
    "saturation": "sum(rate(m2ost_engine_busy_seconds_total[WINDOW])) / sum(m2ost_engine_runs_at_once)",
    "requests waiting": "sum(avg_over_time(m2ost_tiler_waiting_requests[WINDOW]))",
    "rows waiting": "sum(avg_over_time(m2ost_engine_waiting_rows[WINDOW]))",
    "rows a run": "sum(rate(m2ost_engine_rows_total[WINDOW])) / sum(rate(m2ost_engine_session_runs_total[WINDOW]))",
    "error ratio": f"{FAILED} / ({FAILED} + "
    'sum(increase(nv_inference_request_success{model=~"m2ost_slide|slide_tiler|slide_info"}[WINDOW])))',
    "refused/s": "sum(rate(m2ost_requests_refused_total[WINDOW]))",
    "decoded/needed": "sum(rate(m2ost_tiler_decoded_px_total[WINDOW]))"
    " / sum(rate(m2ost_tiler_needed_px_total[WINDOW]))",
    "cache MiB": "sum(m2ost_tiler_cache_bytes) / 1048576",
    "restarts": "m2ost_server_restarts_total",
}


Rows = list[tuple[str, dict[str, float]]]
"""The number of clients, or what went before, and the columns."""


def row_of(found: Prometheus, window_s: float) -> dict[str, float]:
    """Every column over the time that has just gone by."""
    return {name: found.ask(query, window_s) for name, query in COLUMNS.items()}


def table(rows: Rows) -> list[str]:
    """The rows for people."""
    lines = ["| clients | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    return lines + [f"| {name} | " + " | ".join(f"{value:.3g}" for value in row.values()) + " |" for name, row in rows]


def measure(server: TritonServer, found: Prometheus, slide: str, seconds: float) -> tuple[Rows, list[str]]:
    """The rows, and what is wrong."""
    rows: Rows = []
    wrong: list[str] = []

    def check(right: bool, words: str) -> None:
        if not right:
            wrong.append(words)

    def scores_more_than(spots: float) -> bool:
        return found.ask("sum(m2ost_guarded_rows_total)") > spots

    def at_rest() -> bool:
        return found.ask(COLUMNS["saturation"], 10) < AT_REST

    for clients in CLIENTS:
        scored = found.ask("sum(m2ost_guarded_rows_total)")
        if clients:
            options = {"users": clients, "seconds": seconds, "load": Load(spots=SPOTS)}
            with ThreadPoolExecutor(1) as background:
                running = background.submit(run_closed_load, server.address, [slide], **options)
                wait_for(partial(scores_more_than, scored), "the first answers", SETTLE_S)
                time.sleep(0.8 * seconds)
                row = row_of(found, 0.8 * seconds)  # while they still ask
                load = running.result()
            rows.append((str(clients), row))
            check(load.all["failed"] == 0, f"{clients} clients: {load.all['failed']} requests failed")
            time.sleep(2.0)  # two scrapes
            told, answered = found.ask("sum(m2ost_guarded_rows_total)") - scored, load.all["spots"]
            check(told == answered, f"{clients} clients: {answered} spots were answered, {told:.0f} are counted")
            if clients >= 4:
                check(row["saturation"] > BUSY, f"{clients} clients: the saturation is {row['saturation']:.2f} only")
            if clients >= 16:
                waiting = row["requests waiting"] + row["rows waiting"]
                check(waiting > 1, f"{clients} clients: no more than {waiting:.1f} requests and rows wait")
            wait_for(at_rest, f"a saturation below {AT_REST}", SETTLE_S)
            name, window_s = f"after {clients}", 10.0
        else:
            time.sleep(seconds)
            name, window_s = "0", seconds
        row = row_of(found, window_s)
        rows.append((name, row))
        check(row["error ratio"] == 0, f"{name} clients: the error ratio is {row['error ratio']:.3f}")
        check(row["saturation"] < AT_REST, f"{name} clients: the saturation is {row['saturation']:.2f}")
        check(row["requests waiting"] == 0, f"{name} clients: {row['requests waiting']:.1f} requests wait")
    return rows, wrong


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.scrape", description=__doc__)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each load")
    parser.add_argument("--out", type=Path, help="a JSON file of the rows")
    given = parser.parse_args()
    if shutil.which("prometheus") is None:
        sys.exit("there is no prometheus here; deploy/install-test-tools.sh installs it")
    options = ServerOptions(release=given.release, roots=SlideRoots({"wsi": given.slide.resolve().parent}))
    with (
        tempfile.TemporaryDirectory(prefix="m2ost-scrape-") as folder,
        TritonServer(options) as server,
        prometheus(server.metrics_url, Path(folder)) as found,
    ):
        rows, wrong = measure(server, found, f"wsi/{given.slide.name}", given.seconds)
    sys.stdout.write("\n".join(table(rows)) + "\n")
    if given.out:
        kept = {
            name: {k: None if math.isnan(v) else v for k, v in row.items()} for name, row in rows
        }  # null: none asked
        report = {"machine": describe_machine(), "spots_a_request": SPOTS, "seconds": given.seconds, "rows": kept}
        given.out.write_text(json.dumps({**report, "wrong": wrong}, indent=2) + "\n")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
