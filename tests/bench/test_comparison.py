"""Ratios of the comparison with iStar, on timings that are given."""

from pathlib import Path

import pytest
from m2ost_bench.istar.comparison import ComparisonOptions, survey
from m2ost_bench.istar.comparison_report import draw, to_markdown
from m2ost_bench.istar.speedups import summarise
from m2ost_istar.timing import StageTiming, VariantTiming
from m2ost_loadtests.rounds import Rounds
from m2ost_preprocess.decoder import DecodedSlide, Decoder
from m2ost_preprocess.errors import SpotError

SUPERPIXELS = {"stock": 1000, "no_shift": 1000, "tissue": 200}


def m2ost(read_s, network_s, spots=10):
    stages = (
        StageTiming("views", "spots", spots, spots, read_s, read_s),
        StageTiming("network", "spots", spots, spots, network_s, network_s, 8e9 * spots, 8e9 * spots),
    )
    return VariantTiming("m2ost", 4, {}, stages)


def istar(variant, read_s, patch_s, head_s, *, sampled=1.0, superpixels=1000):
    stages = (
        StageTiming("read", "patches", int(100 * sampled), 100, read_s * sampled, read_s),
        StageTiming(
            "patch", "patches", int(100 * sampled), 100, patch_s * sampled, patch_s, 12e9 * 100 * sampled, 12e11
        ),
        StageTiming("head", "superpixels", superpixels, superpixels, head_s, head_s),
    )
    return VariantTiming(variant, 256, {}, stages)


def served(name, seconds):
    return VariantTiming(name, 32, {}, (StageTiming("served", "spots", 10, 10, seconds, seconds),))


@pytest.fixture
def timings():
    return {
        "m2ost": [m2ost(1, 1), m2ost(1, 3)],
        "istar stock": [istar("stock", 20, 180, 0, sampled=0.1), istar("stock", 20, 380, 0, sampled=0.1)],
        "istar tissue": [istar("tissue", 2, 6, 2, superpixels=50)] * 2,
        "m2ost, served": [served("m2ost", 2.0)] * 2,
        "istar tissue, served": [served("istar", 9.0)] * 2,
    }


def test_ratios_are_taken_round_by_round(timings):
    found = summarise(Rounds(timings), SUPERPIXELS, 10)
    assert found["speedups"]["istar stock"] == {"median": 100, "min": 100, "max": 100}
    without = found["speedups_without_reading"]["istar stock"]
    assert without == {"median": pytest.approx((180 + 380 / 3) / 2), "min": pytest.approx(380 / 3), "max": 180}
    assert found["speedups"]["istar tissue, served"] == {"median": 4.5, "min": 4.5, "max": 4.5}


def test_m2ost_as_dense_as_the_variant(timings):
    found = summarise(Rounds(timings), SUPERPIXELS, 10)
    # M2OST: 2 s and 4 s for 10 spots, 200 s and 400 s for 1,000 superpixels.
    assert found["dense"]["istar stock"] == {"median": 1, "min": 1, "max": 1}
    # The variant's head ran on 50 of 200 superpixels: 2 + 6 + 2·4 s, against 40 s and 80 s.
    assert found["dense"]["istar tissue"] == {"median": pytest.approx(0.3), "min": 0.2, "max": pytest.approx(0.4)}


def test_places_and_rates_are_those_of_each_system(timings):
    systems = summarise(Rounds(timings), SUPERPIXELS, 10)["systems"]
    assert {name: s["places"] for name, s in systems.items()} == {
        "m2ost": 10,
        "istar stock": 1000,
        "istar tissue": 10,
        "m2ost, served": 10,
        "istar tissue, served": 10,
    }
    assert systems["istar stock"]["sampled"]
    assert not systems["istar tissue"]["sampled"]
    assert systems["istar stock"]["tflop"] == pytest.approx(1.2)
    assert "gflop_per_s" not in systems["m2ost, served"]


@pytest.mark.parametrize(("patch_s", "fair"), [(20, True), (60, False)])
def test_a_slow_baseline_makes_no_fair_comparison(patch_s, fair):
    # M2OST: 80 GFLOP in 1 s. The baseline: 1,200 GFLOP in 20 s or 60 s, 60 or 20 GFLOP/s.
    found = summarise(Rounds({"m2ost": [m2ost(1, 1)], "istar stock": [istar("stock", 1, patch_s, 0)]}), SUPERPIXELS, 10)
    assert found["gflop_share_of_m2ost"]["istar stock"] == pytest.approx(15 / patch_s)
    assert found["fair"] is fair


def test_the_report_says_what_every_figure_depends_on(timings, tmp_path):
    report = {
        "machine": {"processor": "a processor", "cores": 2},
        "slide": "a.svs",
        "size_px": [2220, 2967],
        "mpp": 0.499,
        "spots": 10,
        "device": "cpu",
        "precision": {"m2ost": "fp32", "istar": "fp32"},
        "istar_pretrained": False,
        "memory_cap_mib": 1024.0,
        "rounds": 2,
        "superpixels": SUPERPIXELS,
        **summarise(Rounds(timings), SUPERPIXELS, 10),
        "timings": {name: [t.to_dict() for t in runs] for name, runs in timings.items()},
    }
    text = to_markdown(report)
    for fact in ("a processor", "1024 MiB", "fp32", "random weights", "0.499 µm/px", "10 of 100 patches", "fair"):
        assert fact in text
    assert "| istar stock | 1,000 | 256 |" in text
    draw(report, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 5000


def test_spots_that_are_places_on_an_array_are_not_measured(svs, tmp_path):
    spots = tmp_path / "spots.csv"
    spots.write_text("x,y\n" + "".join(f"{x},{y}\n" for x in range(1, 34) for y in range(1, 36)))
    options = ComparisonOptions(
        slide=svs, release=Path(), istar=Path(), flop_per_spot=1, memory_cap_bytes=1, spots_file=spots
    )
    with Decoder() as decoder, pytest.raises(SpotError, match=r"spots.csv: x, y .*places on an array"):
        survey(options, DecodedSlide(decoder, svs))
