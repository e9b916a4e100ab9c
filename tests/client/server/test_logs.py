"""A server's output becomes records, and no output of it takes room or time without bound."""

import json
import os
import tracemalloc

import pytest
from m2ost_client.server.command import Command
from m2ost_client.server.logs import BURST_S, MOST_ALIKE, MOST_LINE_BYTES, Reader
from m2ost_client.server.process import ServerProcess

STAMP = "W1123 19:32:05.{:06d} 77 x.cc:1] "


def line(words, stamp=23168):
    return f"{STAMP.format(stamp)}{json.dumps(words)}\n".encode()


def records(*parts, now=0.0, reader=None):
    reader = reader or Reader("probe-7")
    return [record for part in parts for record in reader.feed(part, now)] + list(reader.close())


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_are_the_same_however_they_come_in(size):
    output = line("one") + line("zwölf") + b"\n" + line("three") + b"the last, without an end"
    found = records(*(output[i : i + size] for i in range(0, len(output), size)))
    assert [record["message"] for record in found] == ["one", "zwölf", "three", "the last, without an end"]


def test_lines_alike_in_a_burst_are_counted_whatever_their_time_and_others_are_all_handed_on():
    parts = [line("accept: no file left", stamp=i) + line(f"request {i}", stamp=i) for i in range(100)]
    found = records(*parts)
    assert [r["message"] for r in found if "event" not in r and "accept" in r["message"]] == [
        "accept: no file left"
    ] * MOST_ALIKE
    assert [r["message"] for r in found if "request" in r["message"]] == [f"request {i}" for i in range(100)]
    (left_out,) = [record for record in found if record.get("event") == "log_left_out"]
    assert (left_out["lines"], left_out["level"], left_out["source"]) == (100 - MOST_ALIKE, "warning", "supervisor")
    assert left_out["message"] == "accept: no file left"


def test_what_was_left_out_is_told_when_the_burst_is_over_and_counting_begins_anew():
    reader = Reader()
    burst = line("alike") * (MOST_ALIKE + 5)
    for now in (0.0, BURST_S, 2 * BURST_S):
        assert len(list(reader.feed(burst, now))) == MOST_ALIKE
        assert not list(reader.tick(now + BURST_S / 2))
        assert [record["lines"] for record in reader.tick(now + BURST_S)] == [5]
    assert not list(reader.close())


def test_lines_that_are_no_records_are_none_in_a_burst_either():
    assert records(b"+----+\n" * 100, b"\n" * 100) == []


def test_a_long_line_is_cut_and_says_so():
    reader = Reader()
    list(reader.feed(b"x", 0))
    tracemalloc.start()
    for _ in range(1600):
        assert not list(reader.feed(b"x" * 65536, 0))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    (record,) = reader.feed(b"\n", 0)
    assert len(record["message"]) == MOST_LINE_BYTES
    assert record["cut_bytes"] == 1600 * 65536 + 1 - MOST_LINE_BYTES
    assert "cut_bytes" not in records(line("short"))[0]


def test_many_different_lines_are_all_handed_on_and_none_is_kept():
    reader = Reader()
    tracemalloc.start()
    count = 0
    for i in range(3000):
        count += len(list(reader.feed(f"{i} ".encode() + b"y" * 15000 + b"\n", 0)))
    assert count == 3000
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_only_requests_with_the_id_of_this_start_are_probes():
    ids = ("probe-7", "probe-8", "m2ost-probe")
    found = records(*(line(json.dumps({"event": "tiled", "request_id": name})) for name in ids))
    assert [record["level"] for record in found] == ["debug", "warning", "warning"]


def test_a_flood_is_read_to_its_end_and_every_line_accounted_for(tmp_path):
    flood = "yes 'Error from accept() call: Too many open files' | head -n 200000; echo the end"
    log = []
    process = ServerProcess(
        Command(["/bin/sh", "-c", flood], {}),
        shm_prefix=f"m2ost-test-{os.getpid()}-",
        runtime=tmp_path / "runtime",
        on_log=log.append,
    )
    process._process.wait(120)
    process.end(0)
    left_out = [record for record in log if record.get("event") == "log_left_out"]
    assert sum(record["lines"] for record in left_out) + len(log) - len(left_out) == 200_001
    assert "the end" in [record["message"] for record in log]
    assert len(log) < 2000
