"""What is counted of a load, on the client's side and on the server's."""

import csv
import io
import json

import msgpack
import numpy as np
import pytest
from m2ost_loadtests.errors import TargetError
from m2ost_loadtests.load.load_report import LoadReport
from m2ost_loadtests.load.load_statistics import LoadStatistics, Sample
from m2ost_loadtests.triton_statistics import parse_metrics, read_metrics, server_figures


def sample(at, latency, *, lag=0.0, asked=4, **more):
    spots = 0 if "failure" in more else asked - sum(more.get("without_value", {}).values())
    return Sample(at, at + lag, at + latency, bytes_sent=asked * 50, asked=asked, spots=spots, **more)


def filled():
    statistics = LoadStatistics()
    for i in range(100):
        statistics.add("a", sample(100 + i / 10, (i + 1) / 100, lag=0.001))
    statistics.add("a", sample(105, 0.1, failure="UNAVAILABLE: full"))
    statistics.add("b", sample(101, 0.2, asked=8, without_value={"OUTSIDE_SLIDE": 3}))
    statistics.add_unanswered("b", 109)
    return statistics


def test_figures_are_exact():
    figures = filled().summary()
    last = 100 + 9.9 + 1
    assert figures["elapsed_s"] == pytest.approx(last - 100)
    a, b = figures["by_name"]["a"], figures["by_name"]["b"]
    assert (a["requests"], a["spots"]) == (100, 400)
    assert a["spots_per_s"] == pytest.approx(400 / 10.9)
    assert a["latency_s"]["p50"] == pytest.approx(0.505)
    assert a["latency_s"]["p95"] == pytest.approx(np.percentile(np.arange(1, 101) / 100, 95))
    assert a["latency_s"]["max"] == pytest.approx(1)
    assert a["send_lag_s"]["p99"] == pytest.approx(0.001)
    assert a["bytes_per_spot"] == 50
    assert (a["failed"], a["failures"]) == (1, {"UNAVAILABLE: full": 1})
    assert (b["requests"], b["spots"], b["spots_without_value"]) == (1, 5, {"OUTSIDE_SLIDE": 3})
    assert b["unanswered_at_the_end"] == 1
    assert figures["all"]["requests"] == 101
    offered, seconds = figures["offered"], 109.9 - 100
    assert (offered["requests"], offered["seconds"]) == (103, pytest.approx(seconds))
    assert offered["requests_per_s"] == pytest.approx(103 / seconds)
    late = [i for i in range(100) if 100 + i / 10 + (i + 1) / 100 > 109.9]
    assert offered["answered_spots_per_s"] == pytest.approx((405 - 4 * len(late)) / seconds)


def test_two_workers_merge_to_what_one_would_have_counted():
    master = LoadStatistics()
    whole = filled().summary()
    worker = LoadStatistics()
    for i in range(100):
        worker.add("a", sample(100 + i / 10, (i + 1) / 100, lag=0.001))
        if i % 40 == 0:  # reports come piecemeal
            master.merge(msgpack.unpackb(msgpack.packb(worker.take())))
    other = LoadStatistics()
    other.add("a", sample(105, 0.1, failure="UNAVAILABLE: full"))
    other.add("b", sample(101, 0.2, asked=8, without_value={"OUTSIDE_SLIDE": 3}))
    other.add_unanswered("b", 109)
    for statistics in (other, worker, other):
        master.merge(statistics.take())
    merged = master.summary()
    assert json.dumps(merged, sort_keys=True) == json.dumps(whole, sort_keys=True)


def test_stages_count_what_was_answered_in_them():
    stages = filled().summary([(2, 100, 105), (4, 105, 111)])["stages"]
    assert [stage["users"] for stage in stages] == [2, 4]
    assert sum(stage["requests"] for stage in stages) == 101
    assert stages[0]["spots_per_s"] == pytest.approx(stages[0]["spots"] / 5)


def test_a_load_without_an_answer_has_no_latency():
    statistics = LoadStatistics()
    statistics.add("a", sample(1, 0.1, failure="x"))
    assert statistics.summary()["all"]["latency_s"] is None
    assert LoadStatistics().summary()["all"]["bytes_per_spot"] is None


METRICS = """# HELP nv_inference_count Number of inferences performed
nv_inference_request_success{{model="m2ost",version="1"}} {success}
nv_inference_request_failure{{model="m2ost",reason="OTHER",version="1"}} 1
nv_inference_request_failure{{model="m2ost",reason="REJECTED",version="1"}} {rejected}
nv_inference_count{{model="m2ost",version="1"}} {rows}
nv_inference_exec_count{{model="m2ost",version="1"}} {executions}
nv_inference_request_duration_us{{model="m2ost",version="1"}} {duration}
nv_inference_queue_duration_us{{model="m2ost",version="1"}} {queue}
nv_inference_compute_infer_duration_us{{model="m2ost",version="1"}} 5e+06
nv_inference_count{{model="idle",version="1"}} 3
m2ost_tiler_spots_total{{model="slide_tiler"}} 1054
nv_gpu_power_usage{{gpu_uuid="GPU-1"}} 30
"""


def test_what_a_server_did_between_two_readings():
    before = parse_metrics(METRICS.format(success=10, rejected=0, rows=40, executions=10, duration=1e6, queue=1e6))
    after = parse_metrics(METRICS.format(success=30, rejected=2, rows=120, executions=15, duration=9e6, queue=3e6))
    assert server_figures(before, after) == {
        "m2ost": {
            "requests": 20,
            "failed": 2,
            "rows": 80,
            "executions": 5,
            "rows_per_execution": 16,
            "requests_per_execution": 4,
            "request_s": 8,
            "queue_ms": 100,
            "compute_ms": 0,
        }
    }
    assert server_figures({}, after)["m2ost"]["rows"] == 120
    assert server_figures(after, after) == {}


def test_of_an_engine_that_joins_requests_itself_its_runs_are_counted():
    counts = {"success": 8, "rejected": 0, "rows": 32, "executions": 8, "duration": 1e6, "queue": 0}
    page = METRICS.format(**counts) + 'm2ost_engine_session_runs_total{model="m2ost"} 2\n'
    figures = server_figures({}, parse_metrics(page))["m2ost"]
    assert (figures["executions"], figures["rows_per_execution"], figures["requests_per_execution"]) == (2, 16, 4)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/metrics", "127.0.0.1:9", "nonsense"])
def test_metrics_that_are_not_there(url):
    with pytest.raises(TargetError, match="--metrics-url"):
        read_metrics(url)


def test_a_report_as_json_csv_text_and_html(tmp_path):
    figures = filled().summary([(2, 100, 105)])
    load = {"arrival_rate": 2.0}
    report = LoadReport(
        "h:1", "triton 2.51.0", ["SlideUser"], {"r/a": 3}, load, {"m2ost_slide": 0}, models={}, **figures
    )
    (tmp_path / "report.json").write_text(report.to_json())
    assert LoadReport.read(tmp_path / "report.json") == report
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [row["name"] for row in rows] == ["a", "b", "all", "step of 2 users"]
    assert rows[0]["spots_per_s"] == str(round(400 / 10.9, 3))
    text = report.to_text()
    for words in ("1 failed: UNAVAILABLE: full", "3 spots without a value: OUTSIDE_SLIDE", "no priority was sent"):
        assert words in text
    assert "1 requests were unanswered" in text
    assert "after they were due" in text
    assert "<section" in report.to_html()
