"""Nobody waits for another's slow slide."""

import threading
import time
from dataclasses import dataclass, field

import pytest
from m2ost_serving import lanes as module
from m2ost_serving.lanes import Lanes

WAIT_S = 20


@dataclass(eq=False)
class Task:
    slide: str
    root: str = "r"
    sender: str = "a"
    background: bool = False
    together: str | None = None
    rows: int = 1
    gate: threading.Event | None = None
    gone: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    lane: int | None = None  # + 100 of background work
    error: Exception | None = None

    def drop(self):
        if self.gone:
            self.done.set()
        return self.gone

    def fail(self, error):
        self.error = error
        self.done.set()


class Worker:
    def __init__(self, place):
        self.place = place
        self.closed = threading.Event()

    def do(self, tasks):
        for task in tasks:
            if task.gate is not None:
                task.gate.wait(WAIT_S)
            if task.slide == "bad":
                raise ValueError("bad")
            task.lane = self.place[1] + 100 * self.place[0]
            task.done.set()

    def close(self):
        self.closed.set()


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(module, "SLOW_S", 0.05)
    monkeypatch.setattr(module, "_TICK_S", 0.01)
    made = []

    def make(**options):
        workers = []

        def worker(*place):
            workers.append(Worker(place))
            return workers[-1]

        made.append(Lanes(worker, rows=4, most_waiting=32, **options))
        made[-1].workers = workers
        return made[-1]

    yield make
    for lanes in made:
        lanes.close()
        assert all(worker.closed.is_set() for worker in lanes.workers)


def slow(count, **facts):
    gates = [threading.Event() for _ in range(count)]
    return gates, [Task(f"slow{i}", gate=gate, **facts) for i, gate in enumerate(gates)]


def test_a_slow_slide_holds_no_other_up_and_its_own_later_work_waits(make):
    lanes = make()
    (gate,), (first,) = slow(1)
    lanes.put([first])
    same, other = Task("slow0"), Task("quick")
    lanes.put([same, other])
    assert other.done.wait(WAIT_S)
    assert other.lane == 1
    assert not same.done.is_set()
    gate.set()
    assert first.done.wait(WAIT_S)
    assert same.done.wait(WAIT_S)
    assert first.lane == 0


def test_while_nothing_is_slow_one_lane_does_all(make, monkeypatch):
    monkeypatch.setattr(module, "SLOW_S", 1e9)
    lanes = make()
    tasks = [Task(f"s{i}") for i in range(10)]
    lanes.put(tasks)
    assert all(task.done.wait(WAIT_S) for task in tasks)
    assert {task.lane for task in tasks} == {0}
    assert len(lanes.workers) == 1


def test_a_root_that_hangs_leaves_lanes_to_others(make):
    lanes = make()
    gates, hanging = slow(module.MOST_LANES, root="dead")
    lanes.put(hanging)
    healthy = Task("fine", root="alive")
    lanes.put([healthy])
    assert healthy.done.wait(WAIT_S)
    assert lanes.waiting == module.MOST_LANES - module.MOST_LANES_A_ROOT
    for gate in gates:
        gate.set()
    assert all(task.done.wait(WAIT_S) for task in hanging)


def test_background_work_has_lanes_of_its_own(make, monkeypatch):
    monkeypatch.setattr(module, "SLOW_S", 1e9)
    lanes = make()
    (gate,), (archive,) = slow(1, background=True)
    lanes.put([archive])
    while lanes.waiting:
        time.sleep(0.01)
    later, same = Task("other", background=True), Task("slow0")
    lanes.put([later, same])
    assert same.done.wait(WAIT_S)
    assert not later.done.wait(0.1)
    gate.set()
    assert later.done.wait(WAIT_S)
    assert (archive.lane, later.lane, same.lane) == (100, 100, 0)


def test_a_slow_slide_of_background_work_holds_no_other_up(make):
    lanes = make()
    (gate,), (first,) = slow(1, background=True)
    lanes.put([first])
    lanes.put([other := Task("quick", background=True)])
    assert other.done.wait(WAIT_S)
    assert other.lane == 101
    gate.set()
    assert first.done.wait(WAIT_S)


def test_the_lane_of_background_work_ends_with_it(make, monkeypatch):
    monkeypatch.setattr(module, "SPARE_IDLE_S", 0.05)
    lanes = make()
    lanes.put([archive := Task("a", background=True)])
    assert archive.done.wait(WAIT_S)
    assert lanes.workers[1].closed.wait(WAIT_S)
    assert not lanes.workers[0].closed.is_set()


def test_a_further_lane_ends_when_it_has_nothing_to_do(make, monkeypatch):
    monkeypatch.setattr(module, "SPARE_IDLE_S", 0.05)
    lanes = make()
    (gate,), (first,) = slow(1)
    lanes.put([first, other := Task("quick")])
    assert other.done.wait(WAIT_S)
    assert lanes.workers[1].closed.wait(WAIT_S)
    gate.set()


def test_work_waits_for_room_and_the_background_for_more_of_it(make):
    room = [False, False]
    lanes = make(room=lambda: tuple(room))
    person, archive = Task("a"), Task("b", background=True)
    lanes.put([archive, person])
    time.sleep(0.1)
    assert not person.done.is_set()
    room[0] = True
    assert person.done.wait(WAIT_S)
    assert not archive.done.wait(0.1)
    room[1] = True
    assert archive.done.wait(WAIT_S)


def test_what_a_worker_does_not_answer_is_answered_by_its_error(make):
    lanes = make()
    lanes.put([bad := Task("bad"), good := Task("good")])
    assert bad.done.wait(WAIT_S)
    assert isinstance(bad.error, ValueError)
    assert good.done.wait(WAIT_S)
    assert good.error is None


def test_who_has_gone_is_dropped_while_it_waits(make):
    told = []
    lanes = make(tell_waiting=told.append)
    gates, (first, second) = slow(2)
    second.slide = first.slide
    lanes.put([first])
    lanes.put([second])
    second.gone = True
    assert second.done.wait(WAIT_S)
    gates[0].set()
    assert first.done.wait(WAIT_S)
    assert second.lane is None
    assert (lanes.waiting, told[-1]) == (0, 0)
