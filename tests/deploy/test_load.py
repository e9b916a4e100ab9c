"""The image under more load than it can serve: whatever can be counted adds up, however slow the machine is."""

import sys

import pytest
from m2ost_bench.load.report import to_markdown

from tests.load.deployment import load_image


@pytest.fixture(scope="module")
def report(server_image, release, svs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("secrets")
    return load_image(server_image, release, svs, folder, seconds=6, rounds=1, steps=(0.5, 1.0))


def steps_of(report):
    return [*report["steps"], *(step for rounds in report["overload"]["steps"].values() for step in rounds)]


def test_nobody_is_lost_no_answer_is_wrong_and_no_stranger_gets_in(report, capsys):
    with capsys.disabled():
        sys.stdout.write(f"\n{to_markdown(report)}")
    assert report["faults"] == []
    for step in steps_of(report):
        assert step["requests"] == step["answered"] + sum(step["refused"].values())
        assert step["unanswered"] == 0
        assert step["compared_spots"] > 0
        assert sum(step["answered_by_worker"]) == step["answered"] > 0


def test_more_than_it_can_serve_is_refused_in_words_that_say_why(report):
    (overload,) = report["overload"]["steps"]["overload"]
    assert set(overload["refused"]) == {"queue_full"}
    (capacity,) = report["overload"]["steps"]["capacity"]
    assert capacity["refused"] == {}


def test_it_ran_as_it_is_deployed(report):
    deployment = report["deployment"]
    assert deployment["user"] == "10001:10001"
    assert deployment["read_only_root"]
    assert deployment["capabilities"] == []
    assert deployment["security"] == ["no-new-privileges"]
    assert deployment["shm_bytes"] == 512 << 20
