"""Threads that help to read and cut: what may run at once, what waits for what, and what a failure leaves behind."""

import json
import os
import threading

import pytest
from m2ost_preprocess.tiling.spans import Spans
from m2ost_preprocess.tiling.threads import MOST_THREADS, REGIONS_AT_ONCE, Helpers
from m2ost_serving.tiler import thread_count

PATIENCE_S = 30.0


def test_two_regions_wait_to_be_cut_and_the_reader_for_the_first_of_three():
    helpers, gates, handed_over = Helpers(2), [threading.Event() for _ in range(3)], []

    def read():
        for gate in gates:
            helpers.cut([lambda gate=gate: gate.wait(PATIENCE_S)])
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
    helpers.finish()
    helpers.close()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_every_part_runs_once(threads):
    helpers, ran = Helpers(threads), []
    for region in range(5):
        helpers.cut([lambda region=region, part=part: ran.append((region, part)) for part in range(7)])
    helpers.finish()
    assert sorted(ran) == [(region, part) for region in range(5) for part in range(7)]
    helpers.close()


def test_a_failure_is_raised_once_nothing_runs_any_more_and_is_forgotten_then():
    helpers, gate, ran = Helpers(2), threading.Event(), []
    helpers.cut([lambda: 1 / 0, lambda: gate.wait(PATIENCE_S) and ran.append("slow")])
    threading.Timer(0.1, gate.set).start()
    with pytest.raises(ZeroDivisionError):
        helpers.finish()
    assert ran == ["slow"]
    helpers.cut([lambda: ran.append("next")])
    helpers.finish()
    assert ran == ["slow", "next"]
    helpers.close()


def test_a_region_that_fails_while_others_wait_leaves_no_part_of_it_running():
    helpers, gate, ran = Helpers(2), threading.Event(), []
    helpers.cut([lambda: 1 / 0, lambda: gate.wait(PATIENCE_S) and ran.append("slow")])
    threading.Timer(0.1, gate.set).start()
    for _ in range(REGIONS_AT_ONCE - 1):
        helpers.cut([lambda: None])
    with pytest.raises(ZeroDivisionError):
        helpers.cut([lambda: None])
    assert ran == ["slow"]
    helpers.finish()
    helpers.close()


def test_threads_that_cannot_be_had_are_an_error_at_once(monkeypatch):
    start, started = threading.Thread.start, []

    def refuse_the_second(thread):
        started.append(thread)
        if len(started) > 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_the_second)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Helpers(3)


def test_reading_and_cutting_are_noted_by_thread(tmp_path):
    helpers = Helpers(1, Spans(tmp_path / "spans.jsonl"))
    with pytest.raises(ZeroDivisionError), helpers.spans.span("read"):
        raise ZeroDivisionError
    helpers.cut([lambda: None])
    helpers.finish()
    read, cut = (json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines())
    assert (read["name"], read["lane"]) == ("read", f"decoder {os.getpid()} MainThread")
    assert (cut["name"], cut["lane"]) == ("cut", f"decoder {os.getpid()} helper_0")
    assert read["start_ns"] <= read["end_ns"] <= cut["start_ns"] <= cut["end_ns"]
    both = threading.Barrier(2)
    helpers.read([lambda: both.wait(PATIENCE_S), lambda: both.wait(PATIENCE_S)])
    along = json.loads((tmp_path / "spans.jsonl").read_text().splitlines()[2])
    assert (along["name"], along["lane"]) == ("read", f"decoder {os.getpid()} helper_0")
    helpers.close()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_every_part_of_a_reading_has_run_once_when_it_returns(threads):
    helpers, ran = Helpers(threads), []
    for n in (0, 1, 7):
        helpers.read([lambda n=n, part=part: ran.append((n, part)) for part in range(n)])
        assert sorted(ran) == [(m, part) for m in (1, 7) if m <= n for part in range(m)]
    helpers.close()


def test_whoever_reads_does_not_wait_for_threads_that_cut():
    helpers, gate, ran_on = Helpers(1), threading.Event(), []
    helpers.cut([lambda: gate.wait(PATIENCE_S)])
    helpers.read([lambda: ran_on.append(threading.current_thread()) for _ in range(4)])
    assert ran_on == [threading.current_thread()] * 4
    gate.set()
    helpers.finish()
    helpers.close()


def test_a_reading_that_fails_is_over_when_it_raises():
    helpers, both, gate, ran = Helpers(1), threading.Barrier(2), threading.Event(), []

    def part():
        both.wait(PATIENCE_S)
        if threading.current_thread() is threading.main_thread():
            threading.Timer(0.3, gate.set).start()
            raise ZeroDivisionError
        gate.wait(PATIENCE_S)
        ran.append("slow")

    with pytest.raises(ZeroDivisionError):
        helpers.read([part, part, *[lambda: ran.append("more")] * 50])
    assert ran == ["slow"]
    helpers.read([lambda: ran.append("next")])
    assert ran == ["slow", "next"]
    helpers.close()


def test_as_many_threads_as_asked_for():
    assert thread_count("all") == min(len(os.sched_getaffinity(0)), MOST_THREADS)
    assert [thread_count(given) for given in ("0", "3")] == [0, 3]
    for wrong in ("-1", "2.5", "many", ""):
        with pytest.raises(ValueError, match="parameter threads of slide_tiler"):
            thread_count(wrong)
