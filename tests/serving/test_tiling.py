"""Requests for views: joined, split by slide, dropped, refused, and answered once."""

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from m2ost_contract import RowStatus, ViewGeometry
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.errors import SlideNotFound, SlideTimeout
from m2ost_preprocess.slides import SlideRoots
from m2ost_serving import lanes, replies, tiling
from m2ost_serving.queueing import Cancelled, QueueFull, TooLate
from m2ost_serving.tiler import PillowTiler
from m2ost_serving.tiling import Tiling, TilingRequest

GEOMETRY = ViewGeometry()
WAIT_S = 60
SVS, TIF = "wsi/CMU-1-Small-Region.svs", "wsi/her2st_C2.tif"


class Reply(replies.Reply):
    """What a client gets."""

    def __init__(self):
        super().__init__(pytest.fail)
        self.gone = False
        self.tickets, self.answers = [], []
        self.said = threading.Event()

    def _has_gone(self):
        return self.gone

    def _send(self, answer):
        self.answers.append(answer)
        self.said.set()

    def ticket(self, ticket, rows):
        self.answered = True
        self.tickets.append((ticket, rows))
        self.said.set()
        return True

    def views(self, views, statuses, facts):
        return self.answer(lambda: (views, statuses, facts))

    def wait(self):
        assert self.said.wait(WAIT_S)
        (answer,) = self.answers
        return answer


class Gated:
    """A real tiler that cuts when it is let."""

    def __init__(self, lane):
        self._tiler = PillowTiler(GEOMETRY, 0)
        self.gate, self.jobs, self.stall_s = threading.Event(), [], WAIT_S
        self.gate.set()
        self.entered = threading.Event()
        self.decoder = self._tiler._decoder

    def buffers(self, rows):
        return self._tiler.buffers(rows)

    def cut_views(self, slide, centers, scales, out, rows, counts, *, pyramid, limits):
        self.entered.set()
        self.gate.wait(WAIT_S)
        self.jobs.append((slide.name, len(centers)))
        limits = replace(limits, stall_s=self.stall_s)
        return self._tiler.cut_views(slide, centers, scales, out, rows, counts, pyramid=pyramid, limits=limits)

    def close(self):
        self._tiler.close()


@pytest.fixture
def service(svs, pyramid, tmp_path):
    folder = tmp_path / "wsi"
    folder.mkdir()
    for path in (svs, pyramid):
        shutil.copy(path, folder / path.name)
    tilers, counted = [], []

    def tiler(background, lane):
        tilers.append(Gated(lane))
        return tilers[-1]

    tiling = Tiling(SlideRoots({"wsi": folder}), tiler, count=lambda counts, tiler: counted.append(counts))
    tiling.tilers, tiling.counted = tilers, counted
    yield tiling
    for tiler in tilers:
        tiler.gate.set()
    tiling.close()


def request(slides, centers=None, **facts):
    n = len(slides)
    centers = np.array([[700 + 20 * i, 900] for i in range(n)], np.int32) if centers is None else centers
    return TilingRequest(Reply(), slides, centers, np.ones(n, np.float32), **facts)


def expected(slide, centers):
    out = [np.zeros((len(centers), *GEOMETRY.shape), np.uint8) for _ in GEOMETRY.names]
    with Decoder(GEOMETRY, threads=0) as decoder:
        assert not decoder.cut_views(slide, centers, np.ones(len(centers), np.float32), out).any()
    return out


def test_requests_on_one_slide_are_cut_together_and_answered_apart(service, svs):
    service.tilers[0].gate.clear()
    first = request([SVS])
    service.put(first)
    assert service.tilers[0].entered.wait(WAIT_S)
    two, three = request([SVS] * 2, sender="b"), request([SVS] * 3, sender="c")
    service.put(two)
    service.put(three)
    service.tilers[0].gate.set()
    for asked in (first, two, three):
        views, statuses, facts = asked.reply.wait()
        assert statuses.shape == (len(asked.names), 1)
        assert facts["rows_without_value"] == 0
        for found, want in zip(views, expected(svs, asked.centers), strict=True):
            np.testing.assert_array_equal(found, want)
    assert service.tilers[0].jobs == [(svs.name, 1), (svs.name, 5)]
    assert sum(counts.spots for counts in service.counted) == 6


def test_a_request_on_several_slides_is_answered_once_and_in_its_order(service, svs, pyramid):
    asked = request([TIF, SVS, TIF, "wsi/absent.svs"])
    service.put(asked)
    views, statuses, facts = asked.reply.wait()
    assert statuses[:, 0].tolist() == [0, 0, 0, RowStatus.SLIDE_UNAVAILABLE]
    assert facts["errors"] == ["wsi/absent.svs: no such slide on the server"]
    for path, rows in ((pyramid, [0, 2]), (svs, [1])):
        for found, want in zip(views, expected(path, asked.centers[rows]), strict=True):
            np.testing.assert_array_equal(found[rows], want)
    assert all(not view[3].any() for view in views)


def test_names_that_can_be_no_slides_are_answered_at_once(service):
    asked = request(["wsi/../x", "wsi/../x"])
    service.put(asked)
    assert isinstance(asked.reply.wait(), SlideNotFound)
    assert service.tilers[0].jobs == []


def test_who_has_gone_before_its_turn_costs_nothing(service, svs):
    service.tilers[0].gate.clear()
    first, gone, stays = request([SVS]), request([SVS] * 4), request([SVS] * 2)
    service.put(first)
    assert service.tilers[0].entered.wait(WAIT_S)
    service.put(gone)
    service.put(stays)
    gone.reply.gone = True
    service.tilers[0].gate.set()
    assert isinstance(gone.reply.wait(), Cancelled)
    stays.reply.wait()
    assert sum(rows for _, rows in service.tilers[0].jobs) == 3


def test_who_goes_while_it_is_cut_costs_no_further_region(service, pyramid):
    """Two corners of the slide are two regions: the second is left out."""
    asked = request([TIF] * 2, np.array([[700, 900], [8000, 9000]], np.int32))
    child = service.tilers[0].decoder
    child.describe(pyramid)
    os.kill(child.pid, signal.SIGSTOP)
    asked.reply.gone = False
    service.put(asked)
    assert service.tilers[0].entered.wait(WAIT_S)
    asked.reply.gone = True
    deadline = time.monotonic() + WAIT_S
    while not child._jobs._control.unwanted[:2].all():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGCONT)
    assert isinstance(asked.reply.wait(), Cancelled)
    assert sum(counts.spots for counts in service.counted) == 0


def test_a_request_over_its_budget_names_it(service, svs, monkeypatch):
    child = service.tilers[0].decoder
    child.describe(svs)
    os.kill(child.pid, signal.SIGSTOP)
    monkeypatch.setattr(tiling, "GRACE_S", 0.2)
    asked = request([SVS], budget_s=0.2)
    service.put(asked)
    error = asked.reply.wait()
    assert isinstance(error, SlideTimeout)
    assert "not all of its spots were cut within 0.2 s" in str(error)


def test_a_slide_that_stalls_is_refused_at_once_for_a_while_and_no_other(service, svs, pyramid):
    decoder = service.tilers[0].decoder
    decoder.describe(svs)
    os.kill(decoder.pid, signal.SIGSTOP)
    service.tilers[0].stall_s = 0.2
    stalled = request([SVS])
    service.put(stalled)
    assert "got no further for 0.2 s" in str(stalled.reply.wait())
    service.tilers[0].stall_s = WAIT_S
    again, other = request([SVS]), request([TIF])
    service.put(again)
    assert "gave no answer a moment ago; tried again in" in str(again.reply.wait())
    service.put(other)
    assert other.reply.wait()[1].tolist() == [[0]]


def test_the_queue_is_bounded_and_says_so(service, svs, monkeypatch):
    monkeypatch.setattr(lanes, "SLOW_S", 1e9)
    service.tilers[0].gate.clear()
    service.put(request([SVS]))
    assert service.tilers[0].entered.wait(WAIT_S)
    for _ in range(tiling.MOST_WAITING):
        service.put(request([SVS]))
    with pytest.raises(QueueFull, match="64 requests wait for this server, 64 may"):
        service.put(request([SVS]))
    assert service.waiting == tiling.MOST_WAITING


@pytest.mark.parametrize("name", [f"{SVS}\0", "\0" * 64, "wsi/\0"])
def test_a_name_that_ends_with_nul_bytes_has_no_value(service, name):
    """NumPy takes such a name for the shorter one, or for none."""
    asked = request([SVS, name, SVS])
    service.put(asked)
    _, statuses, facts = asked.reply.wait()
    assert statuses[:, 0].tolist() == [RowStatus.OK, RowStatus.SLIDE_UNAVAILABLE, RowStatus.OK]
    assert facts["rows_without_value"] == len(facts["errors"]) == 1


def test_a_ticket_is_given_when_the_turn_has_come_and_redeemed_once(service, svs):
    asked = request([SVS] * 2, by_ticket=True)
    service.put(asked)
    first = asked.reply
    assert first.said.wait(WAIT_S)
    ((ticket, rows),) = first.tickets
    assert rows == 2
    assert service.tilers[0].jobs == []
    second = Reply()
    service.redeem(ticket, second)
    assert second.wait()[1].tolist() == [[0], [0]]
    assert first.answers == []
    with pytest.raises(TooLate, match="no such ticket"):
        service.redeem(ticket, Reply())


def test_a_request_for_two_slides_is_asked_of_nobody_while_its_ticket_is_out(service, svs, monkeypatch):
    """Triton has freed what its first reply asks: whether it is cancelled is anything."""
    asked = request([SVS, TIF], by_ticket=True)
    service.put(asked)
    first = asked.reply
    assert first.said.wait(WAIT_S)
    first.is_cancelled = lambda: True
    monkeypatch.setattr(lanes, "_TICK_S", 0.001)
    assert service.waiting == 1
    assert not asked.drop()
    time.sleep(0.5)  # the lanes look at what waits meanwhile
    service.redeem(first.tickets[0][0], second := Reply())
    _, statuses, _ = second.wait()
    assert not statuses.any()


def test_a_ticket_that_comes_back_once_it_was_given_up_is_refused(service):
    asked = request([SVS], by_ticket=True)
    service.put(asked)
    assert asked.reply.said.wait(WAIT_S)
    asked.give_up()
    with pytest.raises(TooLate, match="came back too late"):
        service.redeem(asked.reply.tickets[0][0], Reply())
    assert asked.drop()


def test_lanes_that_cut_one_request_share_its_views():
    class Slow:
        def buffers(self, rows):
            time.sleep(0.05)
            return [np.zeros(rows)]

    asked = request([SVS, TIF])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: asked.buffers(Slow()), range(4)))
    assert all(views is asked.out for views in found)


def test_a_ticket_of_a_client_that_has_gone_costs_nothing(service, svs, monkeypatch):
    monkeypatch.setattr(tiling, "RETURN_S", 0.1)
    lost, cancelled, served = (request([SVS], by_ticket=True, sender=name) for name in "abc")
    for asked in (lost, cancelled):
        service.put(asked)
        assert asked.reply.said.wait(WAIT_S)
        if asked is cancelled:
            gone = Reply()
            gone.gone = True
            service.redeem(asked.reply.tickets[0][0], gone)
            assert isinstance(gone.wait(), Cancelled)
    service.put(served)
    assert served.reply.said.wait(WAIT_S)
    answer = Reply()
    service.redeem(served.reply.tickets[0][0], answer)
    assert answer.wait()[1].tolist() == [[0]]
    assert [rows for _, rows in service.tilers[0].jobs] == [1]
