"""Requests at the engine: whose turn it is, in which batches, and who is refused."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from m2ost_serving import replies, scoring
from m2ost_serving.devices import HostDevice
from m2ost_serving.queueing import Cancelled, QueueFull
from m2ost_serving.scoring import Scoring

from tests.support.machine import wait_for


class Mean:
    """An engine whose value of a spot is what its views hold; it runs when it is let."""

    device = HostDevice()

    def __init__(self, runs=1):
        self.runs = runs
        self.let, self.batches, self.fails = threading.Semaphore(0), [], False

    def run(self, batch):
        self.let.acquire()
        self.batches.append(batch["VIEW0"][:, 0].tolist())
        if self.fails:
            raise RuntimeError("out of memory")
        return np.stack([batch["VIEW0"][:, 0], batch["VIEW1"][:, 0]], axis=1).astype(np.float32)


class Reply(replies.Reply):
    def __init__(self):
        self.gone, self.answers, self.lost = False, [], []
        super().__init__(self.lost.append)

    def _has_gone(self):
        return self.gone

    def _send(self, answer):
        self.answers.append(answer)

    def expression(self, expression):
        return self.answer(lambda: expression)


@pytest.fixture
def make():
    made = []

    def start(runs=1, **options):
        engine = Mean(runs)
        found = SimpleNamespace(engine=engine, waiting=[], runs=[])
        found.scoring = Scoring(
            engine, tell_run=lambda rows, busy_s: found.runs.append(rows), tell_waiting=found.waiting.append, **options
        )
        made.append(found)
        return found

    yield start
    for found in made:
        found.engine.let.release(1000)
        found.scoring.close()


def views(first, rows):
    values = np.arange(first, first + rows, dtype=np.uint8)[:, None]
    return {"VIEW0": values, "VIEW1": values + 100}


def put(found, first, rows=1, **options):
    reply = Reply()
    tensors = views(first, rows)
    found.scoring.put(reply, tensors, rows, **options)
    for tensor in tensors.values():
        tensor[:] = 255  # the memory is Triton's again
    return reply


def answered(*replies):
    wait_for(lambda: all(reply.answers for reply in replies), "all answers", 20)
    return [reply.answers for reply in replies]


def busy(found):
    """Something that runs until it is let."""
    reply = put(found, 0)
    wait_for(lambda: found.waiting[-1] == 0, "the engine at work", 20)
    return reply


def expected(first, rows):
    return np.arange(first, first + rows)[:, None] + np.array([0, 100], np.float32)


def test_requests_are_joined_and_cut_to_the_batch_and_each_gets_its_own_rows(make):
    found = make(batch_rows=8)
    busy(found)
    small, large, one = put(found, 10, 3, sender="a"), put(found, 20, 19, sender="b"), put(found, 50, 1, sender="c")
    found.engine.let.release(1000)
    for reply, first, rows in ((small, 10, 3), (large, 20, 19), (one, 50, 1)):
        ((expression,),) = answered(reply)
        np.testing.assert_array_equal(expression, expected(first, rows))
        assert expression.dtype == np.float32
    assert max(map(len, found.engine.batches)) == 8
    assert len(found.runs) == len(found.engine.batches) == 4
    assert {10, 11, 12, 50} < set(found.engine.batches[1])


def test_background_work_runs_in_whole_batches_alone_and_in_slices_while_others_ask(make, monkeypatch):
    monkeypatch.setattr(scoring, "OTHERS_S", 0.0)
    found = make(batch_rows=8)
    busy(found)
    put(found, 100, 16, background=True, sender="archive")
    found.engine.let.release(1000)
    wait_for(lambda: len(found.engine.batches) == 3, "all batches", 20)
    assert [len(batch) for batch in found.engine.batches] == [1, 8, 8]

    monkeypatch.setattr(scoring, "OTHERS_S", 60.0)
    found = make(batch_rows=8)
    busy(found)
    archive = put(found, 100, 16, background=True, sender="archive")
    person = put(found, 10, 2)
    found.engine.let.release(2)
    answered(person)
    wait_for(lambda: found.waiting[-1] == 14, "a slice at work", 20)
    late = put(found, 20, 2)
    found.engine.let.release(1000)
    answered(late, archive)
    assert [len(batch) for batch in found.engine.batches] == [1, 2, 2, 2, *[2] * 7]
    np.testing.assert_array_equal(archive.answers[0], expected(100, 16))


def test_who_asks_for_many_rows_lets_others_pass(make):
    found = make(batch_rows=4)
    busy(found)
    large, small = put(found, 100, 40, sender="large"), put(found, 10, 1, sender="small")
    found.engine.let.release(3)
    answered(small)
    assert not large.answers


def test_too_much_is_refused_before_it_is_copied(make):
    found = make(waiting_rows=8)
    busy(found)
    put(found, 10, 8)
    with pytest.raises(QueueFull, match=r"8 spots wait for this server, 8 may"):
        put(found, 20, 1)
    assert found.waiting[-1] == 8
    found.engine.let.release(1000)


def test_what_nobody_waits_for_is_not_run(make):
    found = make(batch_rows=4)
    busy(found)
    gone, there = put(found, 10, 16, sender="gone"), put(found, 40, 2, sender="there")
    gone.gone = True
    found.engine.let.release(1000)
    answered(gone, there)
    assert isinstance(gone.answers[0], Cancelled)
    assert found.engine.batches[1:] == [[40, 41]]


def test_a_failed_run_fails_the_requests_in_it_once_and_no_other(make):
    found = make(batch_rows=4)
    found.engine.fails = True
    first = busy(found)
    large = put(found, 10, 12, sender="large")
    found.engine.let.release(2)
    (error,), (other,) = answered(first, large)
    assert (str(error), str(other)) == ("out of memory", "out of memory")
    found.engine.fails = False
    found.engine.let.release(1000)
    answered(put(found, 20, 4))
    time.sleep(0.05)
    assert len(large.answers) == 1
    assert len(found.engine.batches) == 3


def test_an_answer_that_cannot_be_given_costs_nobody_elses(make):
    found = make(batch_rows=8)
    busy(found)
    lost, there = put(found, 10, 2, sender="lost"), put(found, 20, 2, sender="there")
    lost._send = lambda answer: 1 / 0
    found.engine.let.release(1000)
    ((expression,),) = answered(there)
    np.testing.assert_array_equal(expression, expected(20, 2))
    answered(put(found, 30, 2))
    assert len(lost.lost) == 1


def test_a_client_that_cannot_be_asked_is_answered(make):
    found = make()
    busy(found)
    broken = put(found, 10, 2)
    broken._has_gone = lambda: 1 / 0
    found.engine.let.release(1000)
    answered(broken, put(found, 20, 2))


def test_the_supervisors_probes_are_no_others(make):
    found = make(batch_rows=8)
    busy(found)
    found.engine.let.release(1)
    probe = put(found, 1, 1, sender="m2ost-probe")
    wait_for(lambda: found.waiting[-1] == 0, "the probe at work", 20)
    found.scoring._others_until = 0.0
    archive = put(found, 100, 16, background=True, sender="archive")
    put(found, 2, 1, sender="m2ost-probe")
    found.engine.let.release(1000)
    answered(archive, probe)
    assert 8 in map(len, found.engine.batches)


def test_a_request_is_dealt_to_as_many_runs_as_there_are_at_a_time(make):
    found = make(runs=2, batch_rows=8)
    reply = put(found, 10, 8)
    wait_for(lambda: found.waiting and found.waiting[-1] == 0, "both runs to have taken their share")
    assert not reply.answers
    found.engine.let.release(2)
    wait_for(lambda: reply.answers, "an answer")
    assert sorted(found.engine.batches) == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert reply.answers[0][:, 0].tolist() == list(range(10, 18))
    assert len(found.runs) == 2


def test_while_others_ask_one_of_two_runs_is_free_of_background_work(make):
    found = make(runs=2, batch_rows=8)
    first = put(found, 0)
    found.engine.let.release()
    answered(first)
    archive = put(found, 10, 6, background=True)
    wait_for(lambda: found.waiting[-1] == 4, "one run at background work")
    other = put(found, 20, 2)
    wait_for(lambda: found.waiting[-1] == 4, "the other run at the request of somebody who waits")
    found.engine.let.release(1000)
    answered(other, archive)
    assert sorted(map(len, found.engine.batches[1:])) == [2, 2, 2, 2]
