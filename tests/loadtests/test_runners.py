"""Ways to score the same spots, compared in one run."""

import itertools

import numpy as np
from m2ost_loadtests.runners import score_in_turn


def test_processor_time_counts_what_others_work_for_a_way():
    """Of a way that a server works for: one whose processes have used a second a run, told before and after."""
    told = itertools.count()
    runners = {name: lambda: np.zeros((2, 3), np.float32) for name in ("bare", "served")}
    report = score_in_turn(runners, 2, 3, processor_s={"served": lambda: float(next(told))})
    assert set(report["ratios"]) == set(report["ratios_by_processor_time"]) == {"served/bare"}
    assert next(told) == 6, "before and after each of three runs, not of the untimed one"
    assert report["ratios_by_processor_time"]["served/bare"]["max"] < 0.1, "a second against next to nothing"
    assert "ratios_by_processor_time" not in score_in_turn(runners, 2, 1)
