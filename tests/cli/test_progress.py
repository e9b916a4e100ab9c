"""A bar on a terminal, and a line every half minute in a log file."""

import os
import pty
import re
import threading
import time
from io import StringIO

from m2ost_cli.progress import INTERVAL_S, progress, working
from m2ost_contract.progress import listening, tell
from m2ost_loadtests.rounds import interleave


def test_a_log_file_gets_a_line_at_each_interval_with_rate_and_time_left():
    log = StringIO()
    with progress("scoring", "spots", stream=log, interval_s=0.2) as update:
        update(0, 1000)
        time.sleep(0.1)
        update(100, 1000)
        time.sleep(0.35)
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    found = re.fullmatch(r"scoring: 100 of 1,000 spots, (\S+) spots/s, (\d+) s left, 0 s so far", lines[0])
    assert found, lines
    assert 200 < float(found[1]) < 600  # 100 in the first fifth of a second
    assert int(found[2]) <= 900 / 200


def test_work_that_tells_nothing_is_told_with_its_time():
    log = StringIO()
    with progress("exporting", "steps", stream=log, interval_s=0.1):
        time.sleep(0.15)
    assert log.getvalue() == "exporting: 0 s so far\n"


def test_short_work_leaves_a_log_file_alone_and_no_thread():
    log, before = StringIO(), threading.active_count()
    with progress("scoring", "spots", stream=log) as update:
        update(1, 2)
    assert INTERVAL_S == 30
    assert log.getvalue() == ""
    assert threading.active_count() == before


def test_a_terminal_gets_a_bar():
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, progress("scoring", "spots", stream=terminal) as update:
        update(0, 40)
        time.sleep(0.2)
        update(10, 40)
        time.sleep(0.2)
        update(30, 40, "last but one")
        time.sleep(0.2)
    shown = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert "━" in shown
    assert "30/40" in shown
    assert "spots/s" in shown
    assert "last but one" in shown


def test_rounds_tell_what_is_next_and_how_much_there_is():
    told = []
    with listening(lambda *words: told.append(words)):
        interleave({"a": int, "b": int}, 2)
    tell("a", 0, 1)  # nobody listens any more
    assert told == [("a", 0, 4), ("b", 1, 4), ("b", 2, 4), ("a", 3, 4), ("done", 4, 4)]
    with working("measuring"):
        interleave({"a": int}, 1)
