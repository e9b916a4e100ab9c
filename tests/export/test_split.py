"""Body and tail are the same network, of every size, and a release without them is still one."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from m2ost.checkpoint import initialise, save
from m2ost.config import M2OSTConfig
from m2ost_contract import BODY_FILE, TAIL_FILE, Manifest, Release
from m2ost_export import release as release_module
from m2ost_export.errors import ExportError
from m2ost_export.fused import FusedM2OST
from m2ost_export.probes import probe_views
from m2ost_export.release import build_release
from m2ost_export.split import BodyM2OST, TailM2OST

from tests.support.releases import ENGINE

from .networks import SMALL, small_network

ROUNDING = 1e-5


def in_two_parts(model, views):
    fused = FusedM2OST(model).eval()
    tokens, means = BodyM2OST(fused)(*views)
    return tokens, means, TailM2OST(fused)(tokens, means)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"n_levels": 1},
        {"n_levels": 1, "depth": 2, "heads": 2},
        {"n_levels": 2, "depth": 3},
        {"n_levels": 4, "heads": 3},
        {"dim": 20, "heads": 2, "head_dim": 24, "channel_dim": 12, "image_px": 96},
        {"levels": (1, 2)},
        {"levels": (2,)},
    ],
    ids=str,
)
def test_the_same_outputs_to_rounding_at_every_size(sizes):
    config = M2OSTConfig(**{**SMALL.to_dict(), **sizes})
    model, _ = initialise(config, tuple(f"g{i}" for i in range(6)))
    views = [torch.from_numpy(view) for view in probe_views(config.views, 14, seed=5)]
    with torch.inference_mode():
        expected = model(*views)
        tokens, means, found = in_two_parts(model, views)
    levels, others = len(config.used_levels), len(config.used_levels) - 1
    rows = sum(map(config.sequence_length, config.used_levels)) if others else 1
    assert tokens.shape == (14, rows, config.dim)
    assert means.shape == (14, levels, others * config.heads * config.head_dim if others else config.dim)
    assert expected.std(dim=0).min() > 100 * ROUNDING, "outputs without contrast would agree by luck"
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


def test_tokens_and_means_both_reach_the_output():
    model, _ = small_network()
    views = [torch.from_numpy(view) for view in probe_views(SMALL.views, 4, seed=1)]
    with torch.inference_mode():
        tokens, means, expected = in_two_parts(model, views)
        tail = TailM2OST(FusedM2OST(model).eval())
        for of_other_spots in ((tokens.roll(1, 0), means), (tokens, means.roll(1, 0))):
            assert (tail(*of_other_spots) - expected).abs().max() > 100 * ROUNDING


@pytest.mark.usefixtures("heavy")
def test_a_release_has_both_graphs_and_says_how_close_they_are(split_release):
    release = Release.open(split_release)
    assert release.split == (split_release / BODY_FILE, split_release / TAIL_FILE)
    release.check([BODY_FILE, TAIL_FILE])
    parity = release.manifest.parity["split"]
    assert parity["max_abs_diff"].keys() == {"1", "2", "7", "32"}
    assert 0 < max(parity["max_abs_diff"].values()) <= parity["tolerance"] == 1e-4


@pytest.mark.usefixtures("heavy")
def test_a_release_without_them_is_read_and_checked_as_it_is(split_release, tmp_path):
    before = tmp_path / "before"
    shutil.copytree(split_release, before)
    manifest = json.loads((before / "manifest.json").read_text())
    del manifest["parity"]["split"]
    for name in (BODY_FILE, TAIL_FILE):
        del manifest["files"][name]
        (before / name).unlink()
    (before / "manifest.json").write_text(json.dumps(manifest))
    release = Release.open(before)
    assert release.split is None
    assert release.manifest.bf16_instructions == ""
    release.check()


@pytest.mark.usefixtures("heavy")
def test_a_pair_that_differs_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    model, card = small_network(n_levels=1)
    other, _ = small_network(1, n_levels=1)
    export = release_module.export_split
    monkeypatch.setattr(release_module, "export_split", lambda _, *paths: export(FusedM2OST(other).eval(), *paths))
    gated = {"instructions": "avx512_bf16", "measured": []}
    with pytest.raises(ExportError, match=r"body and tail .* differ from PyTorch"):
        build_release(model, save(tmp_path / "checkpoint", model, card), tmp_path / "release", gated=gated)
    assert not (tmp_path / "release").exists()


def test_a_manifest_says_nothing_of_what_computes(tmp_path):
    Manifest(replace(ENGINE, runs_on="openvino-cpu"), {}, {}, {}).write(tmp_path)
    assert "runs_on" not in (tmp_path / "manifest.json").read_text()
    assert Manifest.read(tmp_path).engine == ENGINE
    assert Manifest.read(tmp_path).engine.identity == (ENGINE.release_sha256, "")
