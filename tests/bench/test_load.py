"""Loads of a deployment: what of them must add up, whatever the figures are."""

import json
from dataclasses import replace

import numpy as np
import pytest
from m2ost_bench.load.measure import by_reason, faults_of
from m2ost_bench.load.testimony import Seen, read_testimony
from m2ost_loadtests.load.load_report import LoadReport
from m2ost_loadtests.load.load_statistics import LoadStatistics, Sample

FULL = "UNAVAILABLE: in ensemble 'm2ost_slide', 64 requests wait for this server, 64 may; send this one again later"


def report_of(answered=5, refused=3, failure=FULL, unanswered=0, models=None):
    statistics = LoadStatistics()
    for i in range(answered):
        statistics.add("m2ost_slide interactive", Sample(i, i, i + 0.5, bytes_sent=9, asked=8, spots=8))
    for i in range(refused):
        statistics.add("m2ost_slide interactive", Sample(i, i, i, bytes_sent=9, asked=8, failure=failure))
    for _ in range(unanswered):
        statistics.add_unanswered("m2ost_slide interactive", 1)
    return LoadReport("h:1", "triton", ["SlideUser"], {}, {}, {}, models=models or {}, **statistics.summary())


SEEN = [Seen(answered=2, spots=16, failures={FULL: 3}), Seen(answered=3, spots=24, failures={})]
SERVER = {"spots": 40.0, "queue_full": 3.0, "internal": 0.0}
REACHED = {"m2ost_slide": {"requests": 5}}


def faults(report=None, seen=SEEN, server=SERVER, difference=0.0, workers=2):
    return faults_of(report or report_of(models=REACHED), seen, server, difference, workers)


def test_what_adds_up_has_no_fault():
    assert faults() == []
    assert faults(server={}) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"report": report_of(answered=6)}, "answers that the master and its workers count: 6 and 5"),
        ({"report": report_of(unanswered=1)}, "requests without an answer: 0 and 1"),
        ({"report": report_of(models={"m2ost_slide": {"requests": 6}})}, "Triton count: 5 and 6"),
        ({"report": report_of(failure="CANCELLED: x")}, "failures that are no refusal: {} and {'CANCELLED: x': 3}"),
        ({"seen": SEEN[:1]}, "workers that took part: 2 and 1"),
        ({"seen": [replace(SEEN[0], failures={}), SEEN[1]]}, "refusals that the master and its workers count"),
        ({"server": {**SERVER, "spots": 48.0}}, "spots that the master and the server count: 40 and 48"),
        ({"server": {**SERVER, "internal": 1.0}}, "refusals that the master and the server count"),
        ({"difference": 0.01}, "an answer differs by 0.01 from a direct prediction"),
        ({"difference": float("nan")}, "an answer differs by nan from a direct prediction"),
    ],
)
def test_what_does_not_is_told(changed, words):
    assert any(words in fault for fault in faults(**changed)), faults(**changed)


def test_refusals_are_one_reason_whatever_numbers_they_name():
    other = FULL.replace("64 requests", "63 requests")
    assert by_reason({FULL: 2, other: 1, "DEADLINE_EXCEEDED: x": 4}) == {"queue_full": 3, "DEADLINE_EXCEEDED: x": 4}


def test_what_a_worker_saw_comes_back_as_it_was_written(tmp_path):
    kept = Seen(answered=1, spots=2, failures={}, centers=np.eye(2), expression=np.ones((2, 3), np.float32))
    for name, seen in (("1", kept), ("2", SEEN[0])):
        seen.write(tmp_path, name)
    first, second = sorted(read_testimony(tmp_path), key=lambda seen: seen.answered)
    assert (first, second) == (kept, SEEN[0])
    np.testing.assert_array_equal(first.expression, kept.expression)
    assert second.centers is None
    assert json.loads((tmp_path / "2.json").read_text())["failures"] == {FULL: 3}
