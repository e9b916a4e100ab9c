"""Whose turn it is."""

from dataclasses import dataclass

import pytest
from m2ost_serving.queueing import BACKGROUND_TURNS, FairQueue, QueueFull


@dataclass(eq=False)
class Entry:
    sender: str = "a"
    background: bool = False
    together: str | None = None
    rows: int = 1


def turns(queue, count, rows=1):
    return [queue.take(lambda _: rows, lambda entry: True) for _ in range(count)]


def test_clients_take_turns_whatever_the_number_of_their_requests():
    queue = FairQueue(64)
    queue.put([Entry("busy") for _ in range(6)])
    queue.put([Entry("quiet")])
    queue.put([Entry("other"), Entry("other")])
    assert [entry.sender for (entry,) in turns(queue, 9)] == [
        *("busy", "quiet", "other"),
        *("busy", "other", "busy", "busy", "busy", "busy"),
    ]
    assert queue.take(lambda _: 1, lambda entry: True) == []


def test_background_work_goes_last_and_gets_on():
    queue = FairQueue(64)
    queue.put([Entry("archive", background=True) for _ in range(3)])
    queue.put([Entry("person") for _ in range(20)])
    senders = [entry.sender for (entry,) in turns(queue, 2 * BACKGROUND_TURNS)]
    assert senders == 2 * [*["person"] * (BACKGROUND_TURNS - 1), "archive"]


def test_what_shares_a_slide_is_taken_together_up_to_some_rows():
    queue = FairQueue(64)
    first, same, large, last = (Entry(together="s", rows=rows) for rows in (10, 12, 30, 10))
    other = Entry(together="t", rows=1)
    queue.put([first, other, same, large, last])
    assert queue.take(lambda _: 32, lambda entry: True) == [first, same, last]
    assert queue.take(lambda _: 32, lambda entry: entry is not other) == [large]
    assert queue.take(lambda _: 32, lambda entry: entry is not other) == []
    assert len(queue) == 1


def test_a_full_queue_takes_nothing_and_background_work_leaves_room():
    queue = FairQueue(8)
    queue.put([Entry(background=True) for _ in range(6)])
    with pytest.raises(QueueFull, match=r"6 requests wait for this server, 6 may; send this one again later"):
        queue.put([Entry(background=True)])
    queue.put([Entry(), Entry()])
    with pytest.raises(QueueFull):
        queue.put([Entry()])
    assert len(queue) == 8


def test_a_request_larger_than_the_queue_is_taken_when_it_is_empty():
    queue = FairQueue(4)
    queue.put([Entry() for _ in range(9)])
    assert len(queue) == 9


def test_entries_are_removed_for_good():
    queue = FairQueue(8)
    gone, stays = Entry("gone"), Entry("stays")
    queue.put([gone, stays])
    assert queue.remove(lambda entry: entry is gone) == [gone]
    assert turns(queue, 2) == [[stays], []]
