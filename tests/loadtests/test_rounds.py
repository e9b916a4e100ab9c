"""Things measured in turn: who runs when, and ratios of the same round."""

import os
import time

import pytest
from m2ost_loadtests.rounds import Rounds, interleave, seconds_of, spread_text, time_in_turn


def test_every_round_begins_with_another_one():
    order = []
    found = interleave({name: (lambda name=name: order.append(name) or len(order)) for name in "abc"}, 4)
    assert "".join(order) == "abcbcacababc"
    assert found.found == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}


def test_ratios_are_of_the_same_round():
    rounds = Rounds({"slow": ["4", "9", "8"], "fast": ["1", "3", "4"]}).map(float)
    assert rounds.ratio("slow", "fast") == {"median": 3, "min": 2, "max": 4}
    assert rounds.ratios("fast")["slow"] == {"median": pytest.approx(1 / 3), "min": 0.25, "max": 0.5}
    assert rounds.ratios("fast")["fast"] == {"median": 1, "min": 1, "max": 1}
    assert rounds.spreads()["slow"] == {"median": 8, "min": 4, "max": 9}


def test_the_facts_say_where_how_often_and_in_which_order():
    facts = Rounds({"b": [1, 2], "a": [3, 4]}).facts()
    assert (facts["rounds"], facts["order"]) == (2, ["b", "a"])
    assert facts["machine"]["cores"] == len(os.sched_getaffinity(0))


def test_waiting_takes_time_by_the_clock_and_not_the_processors():
    waited = seconds_of(lambda: time.sleep(0.2))
    assert waited.clock >= 0.2
    assert waited.processor < 0.1
    runs = {"wait": lambda: time.sleep(0.02), "work": lambda: sum(range(10**5))}
    timed = time_in_turn(runs, 2)
    assert min(s.clock for s in timed.found["wait"]) >= 0.02
    assert min(s.processor for s in timed.found["work"]) > 0


def test_a_spread_in_words():
    assert spread_text({"median": 2.5, "min": 2, "max": 3.25}, ".2f", "×") == "2.50× [2.00 … 3.25]"
