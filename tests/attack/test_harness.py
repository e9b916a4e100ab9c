"""What the attacks look for would be found if it were there."""

import asyncio
import time

import numpy as np
import pytest
from m2ost_preprocess.readers import open_slide

from . import faults, grammar
from .grammar import Attack, Ground
from .liar import written
from .overload import Answered, message, quantiles_ms
from .requests import Outcome, Report, faults_of
from .target import Log, Slide, Trap

SLIDE = Slide("wsi/a.svs", (2000, 1500))
GROUND = Ground(SLIDE, Trap(None, None, ("odd/link.png",)), 3)
CENTERS = np.array([[100, 100], [5000, 100]], np.int32)
MESSAGE = grammar.pb.ModelInferRequest.FromString(message(SLIDE, CENTERS))


def answered(status=(0, 1), values=None, must_fail=False):
    """An answer to a request of a spot on the slide and one beside it."""
    status = np.array(status, np.int32).reshape(-1, 1)
    values = np.where(status == 0, np.float32(1), np.float32(np.nan)) * np.ones((1, 3)) if values is None else values
    answer = written(MESSAGE, {"STATUS": status, "EXPRESSION": np.array(values, np.float32)})
    attack = Attack("a", grammar.INFER, MESSAGE.SerializeToString(), must_fail=must_fail)
    return Outcome(0, attack, "OK", "", answer.SerializeToString())


def refused(status, words="", **options):
    return Outcome(0, Attack("a", grammar.INFER, b"", **options), status, words)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (answered(), None),
        (answered(status=(0, 0)), "status 0 of"),
        (answered(status=(1, 1)), "status 1 of"),
        (answered(values=[[1, 1, 1], [1, 1, 1]]), "do not fit its statuses"),
        (answered(values=[[1, np.nan, 1], [np.nan] * 3]), "do not fit its statuses"),
        (answered(status=(0,)), "asked for 2"),
        (answered(must_fail=True), "was answered"),
        (refused("NOT_FOUND", "a.svs: no such slide"), None),
        (refused("INTERNAL", "Unable to parse request"), None),
        (refused("INTERNAL", "boom"), "INTERNAL: 'boom'"),
        (refused("UNKNOWN", ""), "UNKNOWN"),
        (refused("DEADLINE_EXCEEDED"), "no answer within"),
        (refused("CANCELLED"), "cancelled by the server"),
        (refused("CANCELLED", cancel_after_s=0.1), None),
        (refused("NOT_FOUND", "/srv/slides/a.svs: no such file"), "tells a path"),
        (refused("NOT_FOUND", "x" * 5000), "5000 characters"),
        (refused("NOT_FOUND", "x" * 5000, by_triton=True), None),
    ],
)
def test_an_answer_that_cannot_be_is_a_fault(outcome, words):
    found = list(faults_of(outcome, GROUND, ("/srv/slides",)))
    assert len(found) == (words is not None), found
    assert words is None or words in found[0]


def test_rows_of_requests_are_read_in_both_of_their_forms():
    tensors = grammar.spots(GROUND, np.random.default_rng(0), names=[b"wsi/a.svs", b"odd/x"])
    for raw in (False, True):
        for tensor in tensors:
            tensor.raw = raw
        rows = grammar.scored_rows(grammar.request("m2ost_slide", tensors).SerializeToString())
        assert [name for name, _, _ in rows] == ["wsi/a.svs", "odd/x"]
        assert [center for _, center, _ in rows] == [tuple(center) for center in tensors[1].values.tolist()]
    assert grammar.scored_rows(b"\xff\xff") is None


def test_growth_is_of_the_least_in_a_third():
    report = Report(0, memory=[{"pss": value} for value in (10.0, 20.0, 500.0, 100.0, 180.0, 900.0)])
    assert report.growth_mib() == {"pss": 80.0}


def test_frames_of_python_in_a_log_are_seen():
    log = Log([{"message": "fine"}, {"message": "boom\n\nAt:\n  model.py(62): execute"}])
    assert len(log.frames()) == 1
    assert log.frames(2) == []
    assert log.sizes(1) == [len(b'{"message": "boom\\n\\nAt:\\n  model.py(62): execute"}')]


def test_a_load_knows_wrong_answers_and_when_it_was_served_again():
    right = [({"STATUS": b"a"}, {"STATUS": b"b"})]
    load = faults.Load("", [b""], right)
    now = time.monotonic()
    load.ended = [Answered(0, "OK", now, now + 1, {"STATUS": name}) for name in (b"a", b"b", b"ab")]
    assert load.wrong() == 1
    values = [{"EXPRESSION": letter * 8} for letter in (b"a", b"b")]
    torn = faults.Load("", [b""], [(values[0], values[1])])
    torn.ended = [Answered(0, "OK", now, now, {"EXPRESSION": data}) for data in (b"aabbaabb", b"aabbaabc", b"a" * 8)]
    assert (torn.wrong(), torn.mixed()) == (2, 1)
    assert load.served_since(now - 1) is None, "three answers are too few"
    load.ended.append(Answered(0, "UNAVAILABLE", now + 1, now + 2, {}))
    load.ended += [Answered(0, "OK", now + 3, now + 4 + i, {"STATUS": b"a"}) for i in range(2 * faults.CLIENTS)]
    assert load.served_since(now) == now + 4


def test_the_two_slides_of_the_faults_differ_in_every_pixel_and_in_nothing_else(svs, tmp_path):
    a, b = (open_slide(path) for path in faults.make_slides(svs, tmp_path))
    assert a.size == b.size == (1024, 1024)
    assert a.resolution == b.resolution
    assert (a.read(0, 0, 1024, 1024) != b.read(0, 0, 1024, 1024)).any(axis=2).mean() > 0.9


def test_an_open_load_ends_every_request_once(monkeypatch):
    from . import overload

    async def never_there(channel, number, data, timeout_s=0):
        return Answered(number, "UNAVAILABLE", 0.0, 0.0, {})

    monkeypatch.setattr(overload, "send", never_there)
    found = asyncio.run(overload.open_load("127.0.0.1:9", [b"a", b"b"], per_s=200.0, seconds=0.25))
    assert [answer.number for answer in found] == [0, 1] * 25
    assert quantiles_ms([]) == {"count": 0}
    assert quantiles_ms([0.1, 0.3])["slowest_ms"] == 300.0
