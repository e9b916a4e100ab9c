"""The arithmetic of an archive's figures."""

import subprocess
import sys

import psutil
import pytest
from m2ost_bench.archive.projection import Archive, Costs, Server, project
from m2ost_bench.archive.speed import Run, rates
from m2ost_bench.process_memory import anonymous_mib, growth_mib, halves

COSTS = Costs(describe_s=1.0, decode_s=0.002, cut_s=0.007, infer_s=0.04, write_s=2.0)
ARCHIVE = Archive(slides=1000, spots_a_slide=1000)


def test_without_a_gpu_tiling_and_inference_take_turns_on_the_cores():
    (row,) = project(COSTS, ARCHIVE, Server(), [1])
    assert row["slides_per_day"] == pytest.approx(86_400 / (1 + 9 + 40))
    assert row["days"] == pytest.approx(1000 * 50 / 86_400)
    assert row["bound_by"] == "tiling and inference"


@pytest.mark.parametrize(
    ("decoders", "servers", "slides_per_s", "bound_by"),
    [
        (1, 1, 1 / 10, "tiling"),
        (8, 1, 1 / 5, "inference"),
        (8, 2, 2 / 5, "inference"),
        (8, 3, 1 / 2, "writing"),
        (8, 30, 1 / 2, "writing"),
    ],
)
def test_the_slowest_stage_sets_the_pace(decoders, servers, slides_per_s, bound_by):
    server = Server(decoders=decoders, gpu_spots_per_s=200.0)
    (row,) = project(COSTS, ARCHIVE, server, [servers])
    assert row["slides_per_day"] == pytest.approx(86_400 * slides_per_s)
    assert row["bound_by"] == bound_by


def test_ratios_are_of_the_same_round():
    runs = [Run(10.0, 100, []), Run(20.0, 100, [])]
    found = rates([(10.0, 20.0), (4.0, 5.0)], runs)
    assert found["spots_per_s"]["rescore"] == {"median": 7.5, "min": 5.0, "max": 10.0}
    assert found["ratios"]["rescore/predict"] == {"median": 1.125, "min": 1.0, "max": 1.25}
    assert found["ratios"]["rescore/predict_scoring_alone"] == {"median": 0.75, "min": 0.5, "max": 1.0}


def test_growth_is_of_peaks():
    samples = [{"client": mib} for mib in (100.0, 130.0, 120.0, 131.0, 110.0)]
    assert growth_mib(*halves(samples)) == {"client": 1.0}


def test_memory_does_not_depend_on_who_else_has_a_library_loaded():
    wait = "import numpy, scipy.spatial, sys; print(flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", wait], **pipes) as one:
        one.stdout.readline()
        process = psutil.Process(one.pid)
        alone = anonymous_mib(process, descendants=False)
        with subprocess.Popen([sys.executable, "-c", wait], **pipes) as other:
            other.stdout.readline()
            assert anonymous_mib(process, descendants=False) == pytest.approx(alone, abs=1 / 16)
        assert alone > 0
