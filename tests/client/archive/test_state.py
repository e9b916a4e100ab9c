"""The state of an archive: one writer, whole transactions, and what `m2ost status` reads of it."""

import numpy as np
import pandas as pd
import pytest
from m2ost_client import InputError
from m2ost_client.archive import SlideRow, State, exclusive, read_slides, read_status
from m2ost_client.archive.output import summarise, write_table
from m2ost_client.archive.score import SpotRange, join, missing
from m2ost_client.archive.state import LOCK, Part

FACTS = {"spots": 3, "spots_without_value": 0, "mpp": 0.5, "mpp_source": "given", "fingerprint": "f"}


def part(first, n):
    values = np.arange(first * 2, (first + n) * 2, dtype=np.float32).reshape(n, 2)
    return Part(first, values, np.full(n, first, np.int32))


@pytest.fixture
def state(tmp_path):
    with exclusive(tmp_path):
        state = State(tmp_path)
        state.begin_run()
        state.list_slides([SlideRow("a", "a.svs"), SlideRow("b", "b.svs")])
        yield state
        state.close()


def test_a_slide_is_claimed_once_and_by_the_next_run_again(state):
    assert state.claim("a")
    assert not state.claim("a")
    state.begin_run()  # the run before was killed: its lock went with it
    assert state.claim("a")
    assert state.slide("a").attempts == 2


def test_parts_come_back_to_the_bit_and_those_of_something_else_do_not(state):
    state.claim("a")
    assert state.begin("a", "key", 9) == []
    state.keep("a", [part(4, 4), part(0, 4)])
    state.keep("a", [part(4, 4)])  # a second worker's answer for the same spots
    found = state.begin("a", "key", 9)
    whole = join([*found, part(8, 1)], 9)
    np.testing.assert_array_equal(whole.expression, np.arange(18, dtype=np.float32).reshape(9, 2))
    assert missing(found, 9, 4) == [(8, 9)]
    assert state.begin("a", "other key", 9) == []
    assert state.begin("a", "key", 9) == []


def test_what_is_left_of_a_slide_is_handed_out_in_ranges_of_whole_requests(state):
    have = [part(8, 4), part(20, 4)]
    ranges = missing(have, 30, 8)
    assert ranges == [(0, 8), (12, 20), (24, 30)]
    centers = np.arange(60, dtype=np.int32).reshape(30, 2)
    units = [SpotRange("s", first, centers[first:end], 1.0) for first, end in ranges]
    requests = [request for unit in units for request in unit.requests(4)]
    assert [(r.first, len(r.centers)) for r in requests] == [(0, 4), (4, 4), (12, 4), (16, 4), (24, 4), (28, 2)]
    with pytest.raises(ValueError, match="spots 0 to 8 are missing"):
        join(have, 30)
    with pytest.raises(ValueError, match="came twice"):
        join([part(0, 4), part(0, 4)], 8)


def test_outcomes(state, tmp_path):
    state.claim("a")
    state.begin("a", "k", 3)
    state.keep("a", [part(0, 3)])
    assert read_status(tmp_path).spots_done == 3
    state.finish("a", "k", FACTS)
    state.put_back("a")  # a run that is drained while it looks whether the slide is what it was
    state.claim("b")
    state.put_back("b")
    assert (state.slide("a").state, state.slide("b").state) == ("done", "pending")
    state.claim("b")
    state.fail("b", "notes.svs: no reader recognises the file")
    status = read_status(tmp_path)
    assert (status.running, status.complete, status.spots_done) == (True, False, 3)
    assert (status.slides["done"], status.slides["failed"]) == (1, 1)
    assert status.problems == {"b": "notes.svs: no reader recognises the file"}
    state.list_slides([SlideRow("a", "a.svs")])  # b is no longer in the manifest
    assert read_status(tmp_path).complete
    state.reset("a")
    assert (state.slide("a").state, state.slide("a").facts) == ("pending", None)


def test_a_folder_without_an_archive_or_of_another_version(state, tmp_path):
    with pytest.raises(InputError, match="make one with `m2ost rescore"):
        read_status(tmp_path / "elsewhere")
    state.set("format", 99)
    with pytest.raises(InputError, match="another version"):
        State(tmp_path)


def test_a_lock_names_its_owner_and_ends_with_it(tmp_path):
    refused = pytest.raises(InputError, match=r"process \d+ on .* is working on this archive")
    with exclusive(tmp_path), refused, exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()


def test_ten_thousand_slides(tmp_path):
    n = 10_000
    lines = ["slide_id,path,mpp", *(f"s{i:05d},slides/{i % 100}/s{i}.svs,0.5" for i in range(n))]
    (tmp_path / "slides.csv").write_text("\n".join(lines))
    rows = read_slides(str(tmp_path / "slides.csv")).rows
    assert len(rows) == n
    with exclusive(tmp_path):
        for run in range(2):
            state = State(tmp_path)
            state.begin_run()
            state.list_slides(rows)
            for i in range(run * n // 2, (run + 1) * n // 2):  # the first run is killed half-way
                assert state.claim(rows[i].slide_id)
                if i % 100 == 7:
                    state.fail(rows[i].slide_id, "truncated")
                else:
                    state.finish(rows[i].slide_id, "k", FACTS)
            if run == 0:
                state.claim(rows[-1].slide_id)
            state.close()
    status = read_status(tmp_path)
    assert (status.slides["done"], status.slides["failed"], status.slides["running"]) == (9900, 100, 0)
    state = State(tmp_path)
    records = state.slides()
    state.close()
    summary = summarise(records, skipped=5000, run={"spots": 3, "seconds": 2.0})
    assert (summary["done"], len(summary["failed"]), summary["left"], summary["spots"]) == (9900, 100, 0, 29700)
    write_table(records, tmp_path)
    table = pd.read_parquet(tmp_path / "archive.parquet")
    assert table.slide_id.tolist() == [row.slide_id for row in rows]
