"""`m2ost bench istar` on a real slide: both systems, in a process each and through one Triton."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from m2ost_bench.istar.systems import M2OSTSystem, Runtime
from m2ost_istar.geometry import VARIANTS, plan
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides.tissue import MASK_PX, tissue_mask

from tests.istar.former import as_formerly
from tests.istar.narrow import NARROW, exported
from tests.support.command import error_of
from tests.support.data import REPOSITORY

DENSE_RECORD = REPOSITORY / "benchmarks" / "dense-intel-xeon-2-cores.json"


@pytest.fixture(scope="module")
def former(tmp_path_factory):
    """iStar as it was exported formerly, which is served all the same."""
    return as_formerly(exported(tmp_path_factory), tmp_path_factory.mktemp("former") / "istar")


def command(slide, release, baseline, out, *options):
    return ["bench", "istar", release, slide, "--out", out, "--istar", baseline, "--pitch-um", "200", *options]


def test_the_report_counts_the_work_of_every_system(svs, narrow_release, former, tmp_path):
    options = ("--memory-cap", "500MiB", "--variant", "tissue", "--rounds", "1", "--refined", DENSE_RECORD)
    m2ost = [Path(sys.executable).with_name("m2ost"), *command(svs, narrow_release, former, tmp_path, *options)]
    done = subprocess.run(m2ost, capture_output=True, text=True, timeout=240)
    # A narrow network is all overhead; whether the comparison is fair is not the point, but the status must say it.
    report = json.loads((tmp_path / "istar.json").read_text())
    assert done.returncode == (0 if report["fair"] else 3), done.stderr
    names = {"m2ost", "istar tissue", "m2ost, served", "istar tissue, served"}
    assert report["systems"].keys() == report["timings"].keys() == names
    assert report["speedups"].keys() == {name for name in names if name.startswith("istar")}
    reader = open_slide(svs)
    mask = tissue_mask(reader.thumbnail(MASK_PX))
    work = plan(reader.size, reader.resolution.mpp, VARIANTS["tissue"], mask, sizes=NARROW)
    for timing in report["timings"]["istar tissue"]:
        patches = next(stage for stage in timing["stages"] if stage["stage"] == "patch")
        assert (patches["sampled"], patches["total"]) == (min(timing["batch_rows"], work.forwards), work.forwards)
    assert report["superpixels"]["tissue"] == work.superpixels
    assert all(0 < peak <= 500 << 20 for peak in report["peak_bytes"].values())
    assert (tmp_path / "istar.md").read_text().startswith("# M2OST and iStar on CMU-1-Small-Region.svs")
    ratios = {row["tolerance_sd"]: row["ratio"]["median"] for row in report["refined"]["rows"]}
    assert ratios[0] <= report["dense"]["istar tissue"]["median"] < ratios[1]
    assert (tmp_path / "istar.png").stat().st_size > 5000


def test_every_round_of_m2ost_reads_the_slide_anew(svs, narrow_release):
    centers, before = np.array([(700, 801), (1500, 2001)], np.int32), set(psutil.Process().children())
    run = M2OSTSystem(narrow_release, svs, centers, 1, 1.0, Runtime()).open()
    [decoder] = set(psutil.Process().children()) - before
    read = []
    for _ in range(3):
        began = decoder.io_counters().read_chars
        run()
        read.append(decoder.io_counters().read_chars - began)
    assert read[1] == read[2] > 50_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--memory-cap", "60MiB"), "60 MiB is too small for a batch of 1"),
        (("--memory-cap", "much"), "--memory-cap much: give a size with its unit, such as 512MiB or 4GiB"),
        (("--variant", "fast"), "--variant must be one of stock, no_shift, tissue, not 'fast'"),
        (("--device", "cuda"), "ONNX Runtime has no CUDA provider here"),
        (("--device", "tpu"), "--device must be one of cpu, cuda, not 'tpu'"),
    ],
)
def test_what_cannot_be_compared_is_said(svs, narrow_release, former, tmp_path, options, words):
    assert words in error_of(*command(svs, narrow_release, former, tmp_path / "out", "--no-served", *options))
    assert not (tmp_path / "out").exists()


def test_a_slide_without_a_resolution(section, narrow_release, former, tmp_path):
    said = error_of(*command(section, narrow_release, former, tmp_path / "out", "--no-served"))
    assert "carries no µm/px; give it with --mpp" in said
