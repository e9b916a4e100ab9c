"""`m2ost info` of each kind of thing that it can read."""

import json
from dataclasses import replace

import numpy as np
import pytest
from m2ost.checkpoint import initialise, load, save
from m2ost.config import M2OSTConfig
from m2ost_client.files import write_result
from m2ost_client.metadata import SpotsScored, result_metadata
from m2ost_client.results import SlideResult
from m2ost_contract import EngineInfo, Manifest, ViewGeometry, sha256_file
from m2ost_preprocess.decoder import SlideInfo
from m2ost_preprocess.slides.spots import Spots

from tests.support.command import error_of, m2ost

GENES = tuple(f"G{i}" for i in range(8))
SHA = "ab" * 32
SMALL = {"image_px": 32, "depth": 1, "dim": 12, "heads": 1, "head_dim": 12, "ffn_dim": 8, "channel_dim": 8}


def told(subject):
    status, output, errors = m2ost("info", subject)
    assert status == 0, errors
    return output


def as_json(*subject):
    status, output, errors = m2ost("info", *subject, "--json")
    assert status == 0, errors
    return json.loads(output)


@pytest.fixture
def checkpoint(tmp_path):
    network, card = initialise(M2OSTConfig(n_genes=len(GENES), **SMALL), GENES)
    save(tmp_path / "checkpoint", network, replace(card, mpp=0.5))
    return tmp_path / "checkpoint"


@pytest.fixture
def engine():
    return EngineInfo(
        genes=GENES,
        views=ViewGeometry(32, (1, 2)),
        mpp=0.5,
        target="log1p_cpm_panel",
        trained=True,
        precision="fp32",
        checkpoint_sha256=SHA,
        onnx_sha256="cd" * 32,
        release_sha256="ef" * 32,
        runs_on="onnxruntime-cpu",
    )


@pytest.fixture
def release(tmp_path, engine):
    folder = tmp_path / "release"
    (folder / "m2ost" / "configs").mkdir(parents=True)
    (folder / "m2ost" / "configs" / "tensorrt.pbtxt").touch()
    Manifest(engine, {"name": "vit", "depth": 2}, {}, {}, name="mine").write(folder)
    return folder


@pytest.fixture
def result(tmp_path, engine):
    slide = SlideInfo(
        size=(1000, 800),
        mpp=0.25,
        mpp_source="the file",
        fingerprint="f",
        vendor="",
        reader="image",
        reader_reason="it is a plain image",
        note="",
        tissue_fraction=1.0,
        pitch_px=100.0,
        centers=np.zeros((0, 2)),
        names=(),
        thumbnail=np.zeros((8, 10, 3), np.uint8),
    )
    spots = Spots(np.array([[100.0, 100.0], [200.0, 100.0]]), ("a", "b"), 100.0, "grid, pitch 25 µm")
    made = SlideResult("s", slide, engine, spots, np.ones((2, 8), np.float32), np.zeros(2, np.int32))
    scored = SpotsScored(2, spots.source, {"OK": 2})
    facts = result_metadata(
        slide, engine, spots=scored, name="s.png", served_as=None, scale=2.0, pixels_sent_by_client=False
    )
    write_result(made, facts, None, tmp_path, {})
    return tmp_path / "s.h5ad"


def test_a_checkpoint(checkpoint):
    output = told(checkpoint)
    assert "a checkpoint, UNTRAINED" in output
    assert "8: G0, G1, G2, G3, G4 …" in output
    assert "at 0.5 µm/px" in output
    assert load(checkpoint)[1].sha256 in output
    assert "GFLOP a spot" in output
    facts = as_json(checkpoint)
    assert (facts["kind"], facts["genes"]["count"], facts["architecture"]["name"]) == ("checkpoint", 8, "m2ost")
    assert facts["sha256"]["card"] == sha256_file(checkpoint / "model.json")


def test_a_release(release):
    output = told(release)
    for words in ("a release", "served as", "mine", "8: G0", "log1p_cpm_panel", "vit, depth 2", "cpu, tensorrt", SHA):
        assert words in output
    facts = as_json(release)
    assert [view["mpp"] for view in facts["views"]] == [0.5, 1.0]
    assert facts["sha256"]["manifest"] == sha256_file(release / "manifest.json")


def test_a_result(result):
    output = told(result)
    for words in ("a result", "s.png, 0.25 µm/px (the file)", "2 (grid, pitch 25 µm)", "8: G0", "onnxruntime-cpu", SHA):
        assert words in output
    facts = as_json(result)
    assert [view["mpp"] for view in facts["views"]] == [0.5, 1.0]
    assert facts["target"] == "log1p_cpm_panel"
    assert facts["warning"] == ""
    assert "warning" not in output


def test_the_papers_model():
    assert as_json()["parameters"] == 7_043_466


@pytest.mark.parametrize("name", ["absent", "notes.txt", "empty", "counts.h5ad"])
def test_what_it_cannot_read_is_told_with_what_it_can(name, tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty").mkdir()
    (tmp_path / "counts.h5ad").write_text("counts")
    error = error_of("info", tmp_path / name)
    assert name in error
    assert "m2ost predict" in error
