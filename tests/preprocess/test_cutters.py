"""Threads that cut: what may run at once, what waits for what, and what a failure leaves behind."""

import json
import os
import threading

import pytest
from m2ost_preprocess.cutters import MOST_THREADS, REGIONS_AT_ONCE, Cutters
from m2ost_preprocess.spans import Spans
from m2ost_preprocess.tiler import thread_count

PATIENCE_S = 30.0


def test_two_regions_wait_to_be_cut_and_the_reader_for_the_first_of_three():
    cutters, gates, handed_over = Cutters(2), [threading.Event() for _ in range(3)], []

    def read():
        for gate in gates:
            cutters.cut([lambda gate=gate: gate.wait(PATIENCE_S)])
            handed_over.append(gate)
            if len(handed_over) == REGIONS_AT_ONCE:
                ahead.set()

    ahead = threading.Event()
    reader = threading.Thread(target=read)
    reader.start()
    assert ahead.wait(PATIENCE_S)
    reader.join(0.2)
    assert reader.is_alive()
    assert handed_over == gates[:2]
    gates[0].set()
    reader.join(PATIENCE_S)
    assert handed_over == gates
    for gate in gates:
        gate.set()
    cutters.finish()
    cutters.close()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_every_part_runs_once(threads):
    cutters, ran = Cutters(threads), []
    for region in range(5):
        cutters.cut([lambda region=region, part=part: ran.append((region, part)) for part in range(7)])
    cutters.finish()
    assert sorted(ran) == [(region, part) for region in range(5) for part in range(7)]
    cutters.close()


def test_a_failure_is_raised_once_nothing_runs_any_more_and_is_forgotten_then():
    cutters, gate, ran = Cutters(2), threading.Event(), []
    cutters.cut([lambda: 1 / 0, lambda: gate.wait(PATIENCE_S) and ran.append("slow")])
    threading.Timer(0.1, gate.set).start()
    with pytest.raises(ZeroDivisionError):
        cutters.finish()
    assert ran == ["slow"]
    cutters.cut([lambda: ran.append("next")])
    cutters.finish()
    assert ran == ["slow", "next"]
    cutters.close()


def test_a_region_that_fails_while_others_wait_leaves_no_part_of_it_running():
    cutters, gate, ran = Cutters(2), threading.Event(), []
    cutters.cut([lambda: 1 / 0, lambda: gate.wait(PATIENCE_S) and ran.append("slow")])
    threading.Timer(0.1, gate.set).start()
    for _ in range(REGIONS_AT_ONCE - 1):
        cutters.cut([lambda: None])
    with pytest.raises(ZeroDivisionError):
        cutters.cut([lambda: None])
    assert ran == ["slow"]
    cutters.finish()
    cutters.close()


def test_threads_that_cannot_be_had_are_an_error_at_once(monkeypatch):
    start, started = threading.Thread.start, []

    def refuse_the_second(thread):
        started.append(thread)
        if len(started) > 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_the_second)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Cutters(3)


def test_reading_and_cutting_are_noted_by_thread(tmp_path):
    cutters = Cutters(1, Spans(tmp_path / "spans.jsonl"))
    with pytest.raises(ZeroDivisionError), cutters.spans.span("read"):
        raise ZeroDivisionError
    cutters.cut([lambda: None])
    cutters.finish()
    read, cut = (json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines())
    assert (read["name"], read["lane"]) == ("read", f"decoder {os.getpid()} MainThread")
    assert (cut["name"], cut["lane"]) == ("cut", f"decoder {os.getpid()} cut_0")
    assert read["start_ns"] <= read["end_ns"] <= cut["start_ns"] <= cut["end_ns"]
    cutters.close()


def test_as_many_threads_as_asked_for():
    assert thread_count("all") == min(len(os.sched_getaffinity(0)), MOST_THREADS)
    assert [thread_count(given) for given in ("0", "3")] == [0, 3]
    for wrong in ("-1", "2.5", "many", ""):
        with pytest.raises(ValueError, match="cut_threads"):
            thread_count(wrong)
