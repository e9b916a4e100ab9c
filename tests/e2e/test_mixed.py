"""The profile cpu-bf16: by a real server where the processor computes in bfloat16, refused in words elsewhere."""

import json
import shutil

import anndata
import numpy as np
import pytest
from m2ost_contract import BODY_FILE, TAIL_FILE, EngineError, Manifest
from m2ost_serving.engine.mixed import bf16_instructions

from tests.support.machine import need_bf16
from tests.support.once import made_once

from .releases import NARROW, by_pytorch, make_release
from .test_command_line import m2ost, predict

PROFILE = ("--profile", "cpu-bf16")


@pytest.fixture(scope="module")
def mixed_release(tmp_path_factory):
    """A narrow release of which the manifest says that it passed the gate, as it would run here if it can."""
    try:
        instructions = bf16_instructions()
    except EngineError:
        instructions = "avx512_bf16"
    gated = {"instructions": instructions, "measured": []}
    return made_once(tmp_path_factory, "mixed", lambda folder: make_release(folder, NARROW, gated=gated)) / "release"


def test_a_slide_scored_in_bfloat16_says_so_and_an_archive_does_not_go_on_with_it(mixed_release, svs, tmp_path):
    instructions, release, log = need_bf16(), mixed_release, tmp_path / "log"
    status, _, errors = predict(svs, release, tmp_path, *PROFILE, "--pitch-um", 200, "--server-log", log)
    assert status == 0, errors
    adata = anndata.read_h5ad(tmp_path / "CMU-1-Small-Region.h5ad")
    expected = by_pytorch(release, svs, adata.obsm["spatial"])
    apart = np.abs(adata.X - expected).max()
    assert 0 < apart < 0.02, "neither float32 nor another network"
    (loaded,) = (json.loads(line) for line in log.read_text().splitlines() if "engine_loaded" in line)
    assert loaded["engine"] == "openvino-cpu-bf16"
    assert f"body bfloat16 by {instructions}, tail float32" in loaded["runs_on"]
    record = json.loads((tmp_path / "CMU-1-Small-Region.json").read_text())
    assert record["engine"] == adata.uns["m2ost"]["engine"] == f"openvino-cpu-bf16 {instructions}"

    archive = ("rescore", svs, "--release", release, "--pitch-um", 400, "--out", tmp_path / "archive")
    status, _, errors = m2ost(*archive)
    assert status == 0, errors
    status, _, errors = m2ost(*archive, *PROFILE)
    assert status == 1
    assert f"(engine was onnxruntime-cpu, is openvino-cpu-bf16 {instructions})" in errors
    status, _, errors = m2ost(*archive, *PROFILE, "--rescore-changed")
    assert status == 0, errors
    (result,) = (tmp_path / "archive" / "results").glob("*.json")
    assert json.loads(result.read_text())["engine"] == record["engine"]


def test_a_processor_without_bfloat16_is_refused_before_a_server_starts(mixed_release, svs, tmp_path, monkeypatch):
    monkeypatch.setenv("OV_CPU_MAX_ISA", "AVX2")
    status, _, errors = predict(svs, mixed_release, tmp_path, *PROFILE)
    assert status == 1
    assert "cannot be served here with profile 'cpu-bf16'" in errors
    assert "does not compute in bfloat16 on this machine" in errors
    status, _, errors = predict(svs, mixed_release, tmp_path, "--profile", "auto", "--pitch-um", 400)
    assert status == 0, errors
    assert "--profile auto: cpu-openvino\n  cpu-bf16: OpenVINO" in errors


def test_a_release_of_before_is_to_be_exported_anew(mixed_release, svs, tmp_path):
    before = tmp_path / "release"
    shutil.copytree(mixed_release, before)
    manifest = Manifest.read(before)
    for name in (BODY_FILE, TAIL_FILE):
        del manifest.files[name]
        (before / name).unlink()
    manifest.write(before)
    status, _, errors = predict(svs, before, tmp_path, *PROFILE)
    assert status == 1
    assert "its gate was not run; export it anew" in errors or "does not compute in bfloat16" in errors
    for config in before.glob("*/configs/cpu-bf16.pbtxt"):
        config.unlink()
    status, _, errors = predict(svs, before, tmp_path, *PROFILE)
    assert status == 1
    assert "has no profile 'cpu-bf16'" in errors
    assert "export the checkpoint anew" in errors
