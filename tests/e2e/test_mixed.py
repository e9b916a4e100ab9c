"""The profile cpu-bf16: by a real server where the processor computes in bfloat16, refused in words elsewhere."""

import json
import shutil

import anndata
import numpy as np
import pytest
from m2ost_client import InputError, ServerOptions, TritonServer
from m2ost_client.archive import Settings, SlideRow
from m2ost_contract import BODY_FILE, TAIL_FILE, Manifest

from tests.support.command import m2ost
from tests.support.machine import need_bf16

from .archives import rescore
from .releases import by_pytorch
from .test_command_line import predict, predict_apart

SLIDE = "wsi/CMU-1-Small-Region.svs"
PROFILE = ("--profile", "cpu-bf16")


def test_a_slide_scored_in_bfloat16_says_so_and_an_archive_does_not_go_on_with_it(
    narrow_release, narrow_server, roots, svs, tmp_path
):
    instructions, log = need_bf16(), []
    engine = f"openvino-cpu-bf16 {instructions}"
    options = ServerOptions(release=narrow_release, roots=roots, profile="cpu-bf16")
    with TritonServer(options, on_log=log.append) as server:
        arguments = ("--server", server.address, "--pitch-um", 200, "--out", tmp_path)
        status, _, errors = m2ost("predict", SLIDE, *arguments)
        assert status == 0, errors
        slides, out = [SlideRow("only", SLIDE)], tmp_path / "archive"
        assert rescore(slides, out, [narrow_server], settings=Settings(pitch_um=400.0)).complete
        with pytest.raises(InputError, match=rf"\(engine was onnxruntime-cpu, is {engine}\)"):
            rescore(slides, out, [server], settings=Settings(pitch_um=400.0))
        assert rescore(slides, out, [server], settings=Settings(pitch_um=400.0), rescore_changed=True).complete
    adata = anndata.read_h5ad(tmp_path / "CMU-1-Small-Region.h5ad")
    expected = by_pytorch(narrow_release, svs, adata.obsm["spatial"])
    apart = np.abs(adata.X - expected).max()
    assert 0 < apart < 0.02, "neither float32 nor another network"
    (loaded,) = [record for record in log if record.get("event") == "engine_loaded"]
    assert loaded["engine"] == "openvino-cpu-bf16"
    assert f"body bfloat16 by {instructions}, tail float32" in loaded["runs_on"]
    record = json.loads((tmp_path / "CMU-1-Small-Region.json").read_text())
    assert record["engine"] == adata.uns["m2ost"]["engine"] == engine
    assert json.loads((out / "results" / "only.json").read_text())["engine"] == engine


def test_a_processor_without_bfloat16_is_refused_before_a_server_starts(narrow_release, svs, tmp_path, monkeypatch):
    monkeypatch.setenv("OV_CPU_MAX_ISA", "AVX2")
    status, _, errors = predict_apart(svs, narrow_release, tmp_path, *PROFILE)
    assert status == 1
    assert "cannot be served here with profile 'cpu-bf16'" in errors
    assert "does not compute in bfloat16 on this machine" in errors
    status, _, errors = predict_apart(svs, narrow_release, tmp_path, "--profile", "auto", "--pitch-um", 400)
    assert status == 0, errors
    assert "--profile auto: cpu-openvino\n  cpu-bf16: OpenVINO" in errors


def test_a_release_of_before_is_to_be_exported_anew(narrow_release, svs, tmp_path):
    before = tmp_path / "release"
    shutil.copytree(narrow_release, before)
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
