"""The shipped checkpoint in fp16, judged on real spots, with an engine."""

import json
from dataclasses import asdict, replace

import pytest
from m2ost_contract import MAX_ROWS, Manifest, changed_files, sha256_file
from m2ost_export.gate import MIN_R_GENE
from m2ost_serving.repository import parse_config, write_repository


def test_the_shipped_checkpoint_in_fp16_agrees_on_real_spots(shipped_fp16, section):
    _, manifest = shipped_fp16
    gate = manifest.parity["gate"]
    assert manifest.engine.precision == "fp16"
    assert gate["decided_on"] == section.name
    assert [(row["what"], row["views"], row["rows"]) for row in gate["measured"]] == [
        ("arithmetic", "made", 20),
        ("graph", "made", 20),
        ("arithmetic", section.name, 16),
        ("graph", section.name, 16),
    ]
    assert all(row["min_r_gene"] >= MIN_R_GENE for row in gate["measured"])
    assert all(0 < row["max_abs_diff"] < 0.01 for row in gate["measured"])
    assert manifest.graph["weight_bytes"]["FLOAT16"] > 20 * manifest.graph["weight_bytes"]["FLOAT"]


def test_a_real_engine_of_the_shipped_checkpoint(shipped_fp16):
    release, manifest = shipped_fp16
    assert not changed_files(release, manifest.files)
    (plan,) = manifest.engines
    assert (plan.compute_capability, plan.file) == ("12.0", "m2ost/1/model-rtx-sm120.plan")
    assert plan.sha256 == manifest.files[plan.file] == sha256_file(release / plan.file)
    assert plan.onnx_sha256 == manifest.engine.onnx_sha256
    assert (plan.precision, plan.rows) == ("fp16", (1, 32, MAX_ROWS))
    assert {k: n for k, n in plan.network.items() if k.startswith(("MATRIX", "SOFTMAX", "NORMALIZATION"))} == {
        "MATRIX_MULTIPLY HALF": 142,
        "MATRIX_MULTIPLY FLOAT": 1,
        "SOFTMAX HALF": 36,
        "NORMALIZATION FLOAT": 21,
    }
    assert plan.attention == 36, "attention that the builder does not know as such is not fused"
    weights = sum(manifest.graph["weight_bytes"].values())
    assert plan.weights_bytes == pytest.approx(weights, rel=1e-3), "every weight in the graph's own type"
    assert plan.activation_bytes < 2**31
    if not plan.inspected:
        assert plan.size_bytes < 0.75 * plan.fp32_size_bytes
        assert not plan.engine


def test_tensorrts_profile_names_a_plan_for_each_gpu(shipped_fp16, tmp_path):
    _, manifest = shipped_fp16
    (plan,) = manifest.engines
    plans = [
        replace(
            plan, toolkit="tensorrt", compute_capability=f"{major}.{minor}", file=f"m2ost/1/model-sm{major}{minor}.plan"
        )
        for major, minor in ((8, 9), (12, 0))
    ]
    write_repository(tmp_path, manifest.engine, plans)
    config = parse_config((tmp_path / "m2ost" / "configs" / "tensorrt.pbtxt").read_text())
    assert dict(config.cc_model_filenames) == {
        "8.9": "model-sm89.plan",
        "12.0": "model-sm120.plan",
    }
    assert config.max_batch_size == plans[0].rows[2] == MAX_ROWS
    others = [tmp_path / "m2ost" / "config.pbtxt", tmp_path / "m2ost" / "configs" / "onnxruntime.pbtxt"]
    assert not any(parse_config(path.read_text()).cc_model_filenames for path in others)


def test_the_manifest_with_engines_survives_its_file(shipped_fp16, tmp_path):
    _, manifest = shipped_fp16
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    raw = json.loads((tmp_path / "manifest.json").read_text())
    (engine,) = raw["engines"]
    assert engine["compute_capability"] == "12.0"
    assert asdict(manifest.engines[0]) == {**engine, "rows": tuple(engine["rows"])}
