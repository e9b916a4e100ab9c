"""The check for GPU machines, run on the CPU: its parts work, tell right from wrong, and say what is missing."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from m2ost.checkpoint import initialise, save
from m2ost_bench.gpu_check.__main__ import main
from m2ost_bench.gpu_check.device import Device, Pace, time_on, times_as_fast
from m2ost_bench.gpu_check.engines import build_with
from m2ost_bench.gpu_check.inputs import PITCHES_PX, FreshSlide, grids_on, load_network, spots_on
from m2ost_bench.gpu_check.networks import Networks, compare
from m2ost_bench.gpu_check.parts import Outcome, Skip, run_part
from m2ost_loadtests.rounds import Rounds

from scripts.crop_slide import main as crop_slide
from tests.e2e.releases import NARROW
from tests.support.data import REPOSITORY

BRIEF = ["--spots", "6", "--batch-rows", "3", "--run-spots", "9", "--rounds", "1", "--at-least-s", "0"]


@pytest.fixture(scope="module")
def narrow(heavy, narrow_release, tmp_path_factory):
    """Checkpoints of two narrow networks, and a release of the first."""
    folder = tmp_path_factory.mktemp("narrow")
    shutil.copytree(narrow_release.parent / "checkpoint", folder / "checkpoint0")
    (folder / "release").symlink_to(narrow_release)
    model, card = initialise(NARROW, tuple(f"gene_{i}" for i in range(6)), seed=1)
    save(folder / "checkpoint1", model, card)
    return folder


@pytest.fixture(scope="module")
def crop(svs, tmp_path_factory):
    """Real pixels, few enough to be quick."""
    path = tmp_path_factory.mktemp("crop") / "crop.png"
    crop_slide(str(svs), str(path), "900")
    return path


def test_all_that_runs_on_a_cpu_is_right(narrow, svs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("M2OST_SERVER_ENV", str(tmp_path))  # no server there
    status = main(
        [
            *("--device", "cpu", "--slide", str(svs), "--checkpoint", str(narrow / "checkpoint0")),
            *("--release", str(narrow / "release"), *BRIEF, "--out", str(tmp_path)),
        ]
    )
    assert status == 0, capsys.readouterr().out
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    parts = {part["name"]: part for part in report["parts"]}
    skipped = {name: part["reason"] for name, part in parts.items() if part["status"] != "right"}
    assert skipped.keys() == {"network tensorrt-fp32", "network tensorrt-rtx-fp32", "served release"}
    assert str(tmp_path) in skipped["served release"]
    assert parts["slide"]["figures"]["slide"] == svs.name
    assert parts["resize"]["figures"]["differing_values"] == parts["tiler"]["figures"]["max_abs_diff"] == 0
    assert parts["network torch-eager-fp32"]["figures"]["max_abs_diff"] < 1e-5
    assert parts["network onnxruntime-fp32"]["figures"]["max_abs_diff"] < 1e-4
    forms = {"torch-eager-fp32", "torch-compiled-fp16", "onnxruntime-fp32"}
    assert set(parts["networks"]["figures"]["right"]) == forms
    speeds = parts["speed of networks"]["figures"]
    assert set(speeds["spots_per_s"]) == forms
    assert set(speeds["share_of_matrix_rate"]) == {"torch-eager-fp32", "onnxruntime-fp32"}
    end_to_end = parts["end to end"]["figures"]
    fastest = max(speeds["spots_per_s"], key=speeds["spots_per_s"].get)
    ways = [f"{tiler} tiler, {form}" for tiler in ("array", "pillow") for form in ("torch-eager-fp32", fastest)]
    assert set(end_to_end["spots_per_s"]) == {f"{grid} spots, {way}" for grid in ("apart", "dense") for way in ways}
    assert end_to_end["max_abs_diff"] < 1e-4
    assert end_to_end["decoded_px"]["apart"] > end_to_end["decoded_px"]["dense"] > 0
    assert parts["runs from the file"]["figures"]["spots"] == {"apart": 9, "dense": 9}
    assert report["machine"]["versions"]["torch"]


def test_a_release_of_other_weights_is_wrong_and_is_not_timed(narrow, crop, tmp_path):
    outcome = Outcome("weights")
    model = load_network(outcome, narrow / "checkpoint1")
    networks = Networks(model, Device("cpu"), [narrow / "release"], crop, spots_on((900, 900), 6), tmp_path)
    wrong = [part for part in networks.outcomes if part.status == "wrong"]
    assert [part.name for part in wrong] == ["network onnxruntime-fp32"]
    assert "below 0.9999" in wrong[0].reason
    assert set(networks.scorers) == {"torch-eager-fp32", "torch-compiled-fp16"}


def test_a_bare_machine_without_a_gpu_says_what_it_lacks(narrow, svs, crop, tmp_path):
    absent = ["safetensors", "openslide", "cucim", "cupy", "onnxruntime", "onnx", "tritonclient", "scipy", "skimage"]
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        f"absent, find = {absent!r}, importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name in absent else find(name, *rest)\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
    )
    folders = ("contract", "preprocess", "serving", "model", "client", "loadtests", "benchmarks")
    command = [sys.executable, "-m", "m2ost_bench.gpu_check", "--gpu", "99", "--slide", svs, "--slide", crop]
    run = subprocess.run(
        [*command, "--checkpoint", narrow / "checkpoint0", *BRIEF, "--out", tmp_path],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *(str(REPOSITORY / folder) for folder in folders)]),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 2, run.stdout + run.stderr
    parts = {part["name"]: part for part in json.loads((tmp_path / "gpu_check.json").read_text())["parts"]}
    assert "OpenSlide" in parts["slide"]["figures"]["passed_over"][0]
    assert parts["weights"]["figures"]["weights"].startswith("untrained: checkpoint0 needs safetensors")
    assert parts["tiler"]["status"] == parts["speed of networks"]["status"] == "right"
    assert parts["served"]["reason"] == "no --release was given"
    assert "no GPU: PyTorch" in run.stdout
    assert "GPU 99 cannot be used" in run.stdout


@pytest.mark.parametrize("wrong", [["--batch-rows", "257"], ["--rounds", "0"], ["--device", "tpu"]])
def test_a_wrong_command_is_not_taken_for_a_machine_without_a_gpu(wrong, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--slide", "a.svs", "--out", "out", *wrong])
    assert end.value.code == 64
    assert f"{wrong[0]}" in capsys.readouterr().err


def test_parts_end_right_wrong_or_skipped():
    def skipped(outcome):
        raise Skip("no such library")

    def broken(outcome):
        outcome.figures["before"] = 1
        raise ZeroDivisionError("by zero")

    assert run_part("a", lambda outcome: None).status == "right"
    assert (run_part("b", skipped).status, run_part("b", skipped).reason) == ("skipped", "no such library")
    wrong = run_part("c", broken)
    assert (wrong.status, wrong.figures) == ("wrong", {"before": 1})
    assert wrong.reason.startswith("ZeroDivisionError: by zero (")


def test_what_is_not_finite_or_not_alike_is_wrong():
    expected = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for found, reason in (
        (np.where(expected == expected[0], np.nan, expected), "3 values are not finite"),
        (expected + np.float32([0, 0.1, 0]) * np.arange(20, dtype=np.float32)[:, None], "r of a gene is 0."),
    ):
        outcome = Outcome("n")
        compare(outcome, found, expected)
        assert outcome.status == "wrong"
        assert reason in outcome.reason
    right = Outcome("n")
    compare(right, expected + np.float32(1e-3), expected)
    assert right.status == "right"


@pytest.mark.parametrize(
    ("toolkit", "reason"), [("tensorrt", "tensorrt is not installed here"), ("tensorrt-rtx", "no GPU here")]
)
def test_an_engine_that_cannot_be_built_here_is_skipped_in_the_builders_words(toolkit, reason, narrow, tmp_path):
    with pytest.raises(Skip, match=reason):
        build_with(toolkit, narrow / "release", tmp_path / "built", Device("cuda"), Outcome("built"))
    assert not list(tmp_path.iterdir())


def test_every_run_reads_a_slide_under_a_new_name(crop, tmp_path):
    slide = FreshSlide(crop, tmp_path / "slide")
    assert [slide.path().name for _ in range(2)] == ["1.png", "2.png"]
    assert (tmp_path / "slide" / "2.png").read_bytes() == crop.read_bytes()
    for grid, pitch in ((g, PITCHES_PX[n]) for n, g in grids_on((2220, 2967), 50).items()):
        assert 30 < len(grid) <= 50
        assert sorted({int(step) for axis in grid.T for step in np.diff(np.unique(axis))}) == [pitch]
    assert grids_on((900, 900), 10**6)["apart"].max() < 900


def test_speeds_are_taken_in_turn():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = time_on(Device("cpu"), runs, Pace(2, 0.0))
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert {len(values) for values in seconds.found.values()} == {2}
    assert times_as_fast(Rounds({"a": [1.0, 2.0], "b": [2.0, 4.0]}), "b") == {"a": 2.0, "b": 1.0}
