"""A request is answered once, whichever threads answer it, and nobody asks for it afterwards."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from m2ost_preprocess.errors import SlideNotFound
from m2ost_serving import replies, triton
from m2ost_serving.metrics import Refusals
from m2ost_serving.shared_memory import NoSharedMemory, SharedMemory


class Sender:
    """Triton's sender: once a request is answered, it cannot be asked or answered any more."""

    def __init__(self):
        self.sent, self.freed = [], False
        self.asking, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def is_cancelled(self):
        self.asking.set()
        self.go_on.wait(20)
        assert not self.freed, "reads freed memory"
        return False

    def send(self, response, flags):
        assert not self.freed, "Response sender has been closed"
        self.sent.append(response)
        self.freed = True


@dataclass(frozen=True)
class Tensor:
    """One of the backend's, of so many bytes."""

    nbytes: int

    def is_cpu(self):
        return True

    def as_numpy(self):
        return self


class Errors:
    CANCELLED, UNAVAILABLE, NOT_FOUND, INVALID_ARG, INTERNAL = range(5)

    def __call__(self, words, code):
        return words, code


@pytest.fixture
def pb_utils():
    log = []
    family = SimpleNamespace(Metric=lambda labels: metric)
    metric = SimpleNamespace(set=lambda value: None, increment=lambda value: None)
    made = SimpleNamespace(
        log=log,
        metric=metric,
        Logger=SimpleNamespace(log_error=log.append),
        InferenceResponse=lambda tensors=None, error=None: error or tensors,
        TritonError=Errors(),
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        MetricFamily=lambda name, description, kind: family,
    )
    made.MetricFamily.COUNTER = made.MetricFamily.GAUGE = "kind"
    return made


@pytest.fixture
def sender():
    return Sender()


@pytest.fixture
def reply(pb_utils, sender):
    request = SimpleNamespace(get_response_sender=lambda: sender)
    return triton.Reply(pb_utils, request, Refusals(triton.metrics(pb_utils, "m2ost")))


def test_of_many_threads_one_answers(reply, sender):
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda n: reply.answer(lambda: [Tensor(n)]), range(64)))
    assert given.count(True) == len(sender.sent) == 1
    assert sender.sent == [[Tensor(given.index(True))]]
    assert reply.answered
    assert not reply.is_cancelled()


def test_an_answer_waits_while_the_client_is_asked_for(reply, sender):
    sender.go_on.clear()
    with ThreadPoolExecutor(2) as pool:
        gone = pool.submit(reply.is_cancelled)
        assert sender.asking.wait(20)
        answer = pool.submit(reply.error, SlideNotFound("a", "b"))
        with pytest.raises(TimeoutError):
            answer.result(0.1)
        sender.go_on.set()
        assert not gone.result(20)
        assert answer.result(20)
    assert sender.sent == [("a: b", Errors.NOT_FOUND)]


def test_an_answer_that_cannot_be_made_is_an_error(reply, sender):
    assert reply.answer(lambda: 1 / 0)
    assert sender.sent == [("division by zero", Errors.INTERNAL)]


def test_an_answer_that_cannot_be_sent_is_told_in_the_log(reply, sender, pb_utils):
    sender.freed = True
    assert reply.answer(list)
    assert not reply.error(ValueError("again"))
    (line,) = pb_utils.log
    assert "an answer was lost" in line


def test_an_answer_that_would_find_no_room_is_an_error_in_words(reply, sender, pb_utils, monkeypatch, tmp_path):
    left = os.statvfs(tmp_path)
    room = SharedMemory(lambda: 5000, tmp_path)
    monkeypatch.setattr(triton, "shared_memory", lambda: room)
    assert reply.answer(lambda: [Tensor(2 * left.f_blocks * left.f_frsize)])
    ((words, code),) = sender.sent
    assert "MiB finds no room in" in words
    with room.room([1 << 20, 3 << 20]):
        pass
    room.check_rows(4, [1 << 20])
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=3, f_frsize=1 << 20))
    room.check_rows(4, [1 << 20])
    with pytest.raises(NoSharedMemory, match=r"views of 5 spots take 5 MiB .* 3 MiB are left; send at most 4 spots"):
        room.check_rows(5, [1 << 20])
    for free_bytes, sizes in ((4 << 20, [4 << 20]), (0, [1 << 20]), (0, [1, 1, 1])):
        room._free_bytes = lambda free_bytes=free_bytes: free_bytes
        with room.room(sizes):
            pass
    with pytest.raises(NoSharedMemory), room.room([3 << 20]):
        raise AssertionError
    assert (code, pb_utils.log) == (Errors.INVALID_ARG, [f'{{"event": "reply", "error": "{words}"}}'])


def test_who_cannot_be_asked_has_not_gone(pb_utils):
    class Deaf(replies.Reply):
        def _has_gone(self):
            raise OSError("no memory")

        def _send(self, answer):
            raise AssertionError

    told = []
    assert not Deaf(told.append).is_cancelled()
    assert "no memory" in told[0]


@pytest.mark.parametrize("kind", ["counter", "gauge"])
def test_a_metric_that_cannot_be_told_costs_nothing(pb_utils, kind):
    pb_utils.metric.set = pb_utils.metric.increment = lambda value: 1 / 0
    tell = getattr(triton.metrics(pb_utils, "m2ost"), kind)("m2ost_rows", "rows")
    tell(1)
    assert "ZeroDivisionError" in pb_utils.log[0]


def test_a_counter_is_told_by_one_thread_at_a_time(pb_utils):
    inside = threading.Semaphore(1)

    def increment(value):
        assert inside.acquire(blocking=False), "two at once"
        time.sleep(0.0001)
        inside.release()

    pb_utils.metric.increment = increment
    tell = triton.metrics(pb_utils, "m2ost").counter("m2ost_rows", "rows")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tell, range(100)))
    assert pb_utils.log == []
