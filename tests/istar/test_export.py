"""An exported folder: complete or absent, honest about its weights, and read whenever it was written."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from m2ost_contract import Manifest, ManifestError, sha256_file
from m2ost_export.graph import ExportError, Parity
from m2ost_istar import export
from m2ost_istar.export import build_istar, probe_patches
from m2ost_istar.manifest import IStarInfo, IStarManifest
from m2ost_istar.networks.istar import build
from m2ost_istar.onnx import OnnxNetworks
from m2ost_serving.repository import parse_config

from tests.support.releases import ENGINE

from .former import as_formerly
from .narrow import GENES, NARROW, TorchNetworks, exported


@pytest.fixture(scope="module")
def model():
    return build(NARROW)


@pytest.fixture(scope="module")
def folder(heavy, tmp_path_factory):
    return exported(tmp_path_factory)


def test_the_graphs_are_the_networks_at_any_size(model, folder):
    ours, theirs = OnnxNetworks(folder), TorchNetworks(model)
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


def test_every_config_fits_and_says_whose_weights_these_are(folder):
    manifest = IStarManifest.read(folder)
    assert (manifest.info.pretrained, manifest.info.head_trained) == (False, False)
    assert manifest.info.genes == GENES
    assert manifest.flop["patch"] == NARROW.patch_flop
    assert {name: set(p["max_abs_diff"]) for name, p in manifest.parity.items()} == {
        "patch": {"1", "2", "7"},
        "region": {"1", "18", "196", "368"},
        "head": {"1", "2", "301"},
    }
    widths = {"CLS": 24, "TOKENS": 24, "GRID": 24, "REGION": 12, "FEATURES": 39, "EXPRESSION": 6}
    configs = sorted(folder.glob("*/config.pbtxt")) + sorted(folder.glob("*/configs/*.pbtxt"))
    assert len(configs) == 7
    for path in configs:
        config = parse_config(path.read_text())
        assert path.read_text().startswith("# "), "the reasons are lost"
        for tensor in [*config.input, *config.output]:
            assert tensor.dims[-1] == widths.get(tensor.name, tensor.dims[-1]), tensor.name
        parameters = {k: v.string_value for k, v in config.parameters.items()}
        assert IStarInfo.from_parameters(parameters) == manifest.info
        assert parameters["pretrained"] == "false"


def test_the_manifest_accounts_for_every_file(folder):
    manifest = IStarManifest.read(folder)
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest.files) == files
    assert all(sha256_file(folder / name) == digest for name, digest in manifest.files.items())
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {
        "istar_slide",
        "istar_patch",
        "istar_region",
        "istar_head",
    }


def test_a_folder_that_was_exported_formerly_says_the_same(folder, tmp_path):
    former, manifest = as_formerly(folder, tmp_path / "former"), IStarManifest.read(folder)
    assert IStarManifest.read(former).info == manifest.info
    config = parse_config((former / "istar_slide" / "config.pbtxt").read_text())
    assert "baseline_sha256" in config.parameters
    parameters = {k: v.string_value for k, v in config.parameters.items()}
    assert IStarInfo.from_parameters(parameters) == manifest.info


def test_weights_of_hipt_are_named_in_the_manifest(folder, tmp_path, monkeypatch):
    def as_exported(network, _, path):
        shutil.copyfile(folder / f"istar_{network}" / "1" / "model.onnx", path)
        return Parity(1e-4, {1: 0.0})

    monkeypatch.setattr(export, "_export", as_exported)
    other = build(NARROW, seed=5)
    torch.save(other.vit256.state_dict(), tmp_path / "a.pth")
    torch.save(other.vit4k.state_dict(), tmp_path / "b.pth")
    model = build(NARROW, vit256=tmp_path / "a.pth", vit4k=tmp_path / "b.pth")
    assert torch.equal(model.vit4k.pos_embed, other.vit4k.pos_embed)
    info = build_istar(model, GENES, tmp_path / "istar", variant="no_shift").info
    assert (info.pretrained, info.head_trained, info.variant) == (True, False, "no_shift")
    assert info.weights == {"vit256": sha256_file(tmp_path / "a.pth"), "vit4k": sha256_file(tmp_path / "b.pth")}


def test_a_graph_that_differs_is_refused_and_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_export_patch", lambda *_: Parity(1e-4, {1: float("nan")}))
    with pytest.raises(ExportError, match=r"patch network.*nothing was written"):
        build_istar(model, GENES, tmp_path / "istar")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused(model, folder, tmp_path):
    with pytest.raises(ExportError, match="variant"):
        build_istar(model, GENES, tmp_path / "x", variant="fast")
    for genes in (("a", "b"), ("a", "a", "b", "c", "d", "e")):
        with pytest.raises(ExportError, match="genes"):
            build_istar(model, genes, tmp_path / "x")
    with pytest.raises(FileExistsError):
        build_istar(model, GENES, folder)


def test_a_graph_from_elsewhere_is_not_run(folder, tmp_path):
    manifest = IStarManifest.read(folder)
    hashes = {**manifest.info.onnx_sha256, "head": "0" * 64}
    replace(manifest, info=replace(manifest.info, onnx_sha256=hashes)).write(tmp_path)
    for name in ("istar_patch", "istar_region", "istar_head"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(RuntimeError, match=r"istar_head.*sha256"):
        OnnxNetworks(tmp_path)


def test_a_damaged_manifest_is_said_to_be_one(folder, tmp_path):
    raw = json.loads((folder / "manifest.json").read_text())
    for damage in ("{", json.dumps({**raw, "info": {}}), json.dumps({**raw, "more": 1})):
        (tmp_path / "manifest.json").write_text(damage)
        with pytest.raises(ManifestError, match="damaged"):
            IStarManifest.read(tmp_path)
    Manifest(ENGINE, {}, {}, {}).write(tmp_path)
    with pytest.raises(ManifestError, match="export-istar"):
        IStarManifest.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="export-istar"):
        IStarManifest.read(tmp_path / "absent")
