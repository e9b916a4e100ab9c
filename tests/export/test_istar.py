"""A baseline: complete or absent, never part of a release, and honest about its weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from m2ost.peers.istar import TorchNetworks, build
from m2ost_contract import Manifest, ManifestError, sha256_file
from m2ost_export import istar as istar_module
from m2ost_export.graph import ExportError, Parity
from m2ost_export.istar import build_baseline, probe_patches
from m2ost_export.repository import parse_config, write_repository
from m2ost_preprocess.istar.manifest import BaselineInfo, BaselineManifest
from m2ost_preprocess.istar.onnx import OnnxNetworks

from tests.model.peers.conftest import NARROW
from tests.support.releases import ENGINE

GENES = tuple("abcdef")


@pytest.fixture(scope="module")
def model():
    return build(NARROW)


@pytest.fixture(scope="module")
def baseline(heavy, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("istar") / "baseline"
    build_baseline(model, GENES, folder)
    return folder


def test_the_graphs_are_the_networks_at_any_size(model, baseline):
    ours, theirs = OnnxNetworks(baseline), TorchNetworks(model)
    for batch in (1, 5, 33):
        patches = probe_patches(batch, seed=99)
        for found, expected in zip(ours.patch(patches), theirs.patch(patches), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-4)
    random = np.random.default_rng(0)
    for grid in ((1, 1), (16, 16), (7, 40)):
        cls = random.standard_normal((*grid, 24), np.float32)
        np.testing.assert_allclose(ours.region(cls), theirs.region(cls), atol=1e-4)
    features = random.standard_normal((500, NARROW.feature_dim), np.float32)
    np.testing.assert_allclose(ours.head(features), theirs.head(features), atol=1e-4)


def test_every_config_fits_and_says_whose_weights_these_are(baseline):
    manifest = BaselineManifest.read(baseline)
    assert (manifest.info.pretrained, manifest.info.head_trained) == (False, False)
    assert manifest.info.genes == GENES
    assert manifest.flop["patch"] == NARROW.patch_flop
    assert {name: set(p["max_abs_diff"]) for name, p in manifest.parity.items()} == {
        "patch": {"1", "2", "7"},
        "region": {"1", "18", "196", "368"},
        "head": {"1", "2", "301"},
    }
    widths = {"CLS": 24, "TOKENS": 24, "GRID": 24, "REGION": 12, "FEATURES": 39, "EXPRESSION": 6}
    configs = sorted(baseline.glob("*/config.pbtxt")) + sorted(baseline.glob("*/configs/*.pbtxt"))
    assert len(configs) == 7
    for path in configs:
        config = parse_config(path.read_text())
        assert path.read_text().startswith("# "), "the reasons are lost"
        for tensor in [*config.input, *config.output]:
            assert tensor.dims[-1] == widths.get(tensor.name, tensor.dims[-1]), tensor.name
        parameters = {k: v.string_value for k, v in config.parameters.items()}
        assert BaselineInfo.from_parameters(parameters) == manifest.info
        assert parameters["pretrained"] == "false"


def test_the_manifest_accounts_for_every_file(baseline):
    manifest = BaselineManifest.read(baseline)
    files = {str(p.relative_to(baseline)) for p in baseline.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest.files) == files
    assert all(sha256_file(baseline / name) == digest for name, digest in manifest.files.items())
    assert {p.name for p in baseline.iterdir() if p.is_dir()} == {
        "istar_slide",
        "istar_patch",
        "istar_region",
        "istar_head",
    }


def test_nothing_of_it_comes_into_a_release(tmp_path):
    write_repository(tmp_path, ENGINE)
    assert {path.name for path in tmp_path.iterdir()} == {
        "m2ost",
        "m2ost_slide",
        "m2ost_patches",
        "slide_tiler",
        "slide_info",
        "row_guard",
    }
    with pytest.raises(FileNotFoundError, match="export-istar"):
        BaselineManifest.read(tmp_path)
    Manifest(ENGINE, {}, {}, {}).write(tmp_path)
    with pytest.raises(ManifestError, match="export-istar"):
        BaselineManifest.read(tmp_path)


@pytest.mark.usefixtures("heavy")
def test_weights_of_hipt_are_named_in_the_manifest(tmp_path):
    other = build(NARROW, seed=5)
    torch.save(other.vit256.state_dict(), tmp_path / "a.pth")
    torch.save(other.vit4k.state_dict(), tmp_path / "b.pth")
    model = build(NARROW, vit256=tmp_path / "a.pth", vit4k=tmp_path / "b.pth")
    info = build_baseline(model, GENES, tmp_path / "baseline", variant="no_shift").info
    assert (info.pretrained, info.head_trained, info.variant) == (True, False, "no_shift")
    assert info.weights == {"vit256": sha256_file(tmp_path / "a.pth"), "vit4k": sha256_file(tmp_path / "b.pth")}


def test_a_graph_that_differs_is_refused_and_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(istar_module, "_export_patch", lambda *_: Parity(1e-4, {1: float("nan")}))
    with pytest.raises(ExportError, match=r"patch network.*no baseline was written"):
        build_baseline(model, GENES, tmp_path / "baseline")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused(model, baseline, tmp_path):
    with pytest.raises(ExportError, match="variant"):
        build_baseline(model, GENES, tmp_path / "x", variant="fast")
    for genes in (("a", "b"), ("a", "a", "b", "c", "d", "e")):
        with pytest.raises(ExportError, match="genes"):
            build_baseline(model, genes, tmp_path / "x")
    with pytest.raises(FileExistsError):
        build_baseline(model, GENES, baseline)


def test_a_graph_from_elsewhere_is_not_run(baseline, tmp_path):
    manifest = BaselineManifest.read(baseline)
    hashes = {**manifest.info.onnx_sha256, "head": "0" * 64}
    replace(manifest, info=replace(manifest.info, onnx_sha256=hashes)).write(tmp_path)
    for name in ("istar_patch", "istar_region", "istar_head"):
        (tmp_path / name).symlink_to(baseline / name)
    with pytest.raises(RuntimeError, match=r"istar_head.*sha256"):
        OnnxNetworks(tmp_path)


def test_a_damaged_manifest_is_said_to_be_one(baseline, tmp_path):
    raw = json.loads((baseline / "manifest.json").read_text())
    for damage in ("{", json.dumps({**raw, "info": {}}), json.dumps({**raw, "more": 1})):
        (tmp_path / "manifest.json").write_text(damage)
        with pytest.raises(ManifestError, match="damaged"):
            BaselineManifest.read(tmp_path)
