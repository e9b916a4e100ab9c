"""A slide-level system leaves as two graphs in one release, each beside what PyTorch computes."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from m2ost.checkpoint import initialise, save
from m2ost.systems.registry import find
from m2ost_contract import Manifest, PositionsError, Release, SlideLevel
from m2ost_export.engine_release import add_engines
from m2ost_export.engines import EngineOptions
from m2ost_export.errors import ExportError
from m2ost_export.release import build_release
from m2ost_serving.engine.sequence import SequenceEngine
from m2ost_serving.repository import parse_config

from tests.support.systems import N_GENES, small

GENES = tuple(f"g{i}" for i in range(N_GENES))


def made(name, folder, **changes):
    network, card = initialise(small(name, **changes), GENES)
    card = save(folder / "checkpoint", network, card)
    return network, build_release(network, card, folder / "release")


@pytest.fixture(scope="module", params=["histogene", "hist2st"])
def built(request, tmp_path_factory, heavy):
    folder = tmp_path_factory.mktemp(request.param)
    network, _ = made(request.param, folder, most_spots=40, heads=6)
    return network.eval(), folder / "release"


def test_one_release_holds_both_stages_and_says_what_it_asks_of_the_spots(built):
    network, release = built
    opened = Release.open(release)
    opened.check()
    assert opened.engine.slide_level == SlideLevel(features=network.dim, table=8, max_spots=40, positions="array")
    assert {"m2ost/1/model.onnx", "m2ost_sequence/1/model.onnx"} <= opened.manifest.files.keys()
    parity = opened.manifest.parity
    assert list(parity["max_abs_diff"]) == ["1", "2", "7", "32"]
    assert parity["sequence"]["tolerance"] == 1e-4
    assert list(parity["sequence"]["max_abs_diff"]) == ["1", "2", "7", "32"]
    assert 0 < max(parity["sequence"]["max_abs_diff"].values()) <= 1e-4
    assert opened.manifest.graph["sequence"]["nodes"] > opened.manifest.graph["nodes"]


def test_its_models_are_fitted_to_the_two_stages(built):
    network, release = built
    configs = {path.parent.name: parse_config(path.read_text()) for path in release.glob("*/config.pbtxt")}
    assert set(configs) == {
        *("m2ost", "m2ost_patches", "m2ost_slide", "row_guard", "slide_info", "slide_tiler"),
        *("m2ost_sequence", "m2ost_spots"),
    }
    shapes = {
        name: {tensor.name: tuple(tensor.dims) for tensor in (*config.input, *config.output)}
        for name, config in configs.items()
    }
    view, features, genes = (*network.config.views.shape,), network.dim, N_GENES
    assert shapes["m2ost"] == shapes["m2ost_patches"] == {"VIEW0": view, "FEATURES": (features,)}
    assert shapes["row_guard"] == {"FEATURES": (features,), "STATUS": (1,)}
    assert shapes["m2ost_spots"]["FEATURES"] == (features,)
    assert shapes["m2ost_sequence"] == {"FEATURES": (-1, features), "POSITION": (-1, 2), "EXPRESSION": (-1, genes)}
    assert shapes["m2ost_slide"]["EXPRESSION"] == (-1, genes)
    assert shapes["m2ost_slide"]["POSITION"] == (-1, 2)
    assert configs["m2ost_sequence"].max_batch_size == configs["m2ost_slide"].max_batch_size == 0
    assert sum(group.count for group in configs["m2ost_sequence"].instance_group) == 1
    (step,) = configs["m2ost_patches"].ensemble_scheduling.step
    assert dict(step.output_map) == {"FEATURES": "FEATURES"}


def test_the_stage_for_slides_does_not_take_negative_places_for_those_at_the_other_end(built):
    network, release = built
    engine = SequenceEngine(Release.open(release))
    features = np.random.default_rng(0).normal(size=(3, network.dim)).astype(np.float32)
    places = np.array([(0, 0), (2, 1), (7, 7)], np.int32)
    with torch.inference_mode():
        expected = network.slide(torch.from_numpy(features), torch.from_numpy(places)).numpy()
    np.testing.assert_allclose(engine.run(features, places), expected, rtol=0, atol=1e-4)
    for wrong in (places - 1, places + 1, places[:2], places[[0, 1, 1]]):
        with pytest.raises(PositionsError):
            engine.run(features, wrong)


def test_permuting_the_spots_permutes_the_answer_and_a_lone_spot_is_a_number(built):
    network, release = built
    engine, random = SequenceEngine(Release.open(release)), np.random.default_rng(1)
    features = random.normal(size=(20, network.dim)).astype(np.float32)
    places = np.stack(np.unravel_index(random.choice(30, 19, replace=False), (6, 5)), axis=1)
    places = np.concatenate([places, [(7, 7)]]).astype(np.int32)  # more than two places from all others
    order = random.permutation(20)
    found = engine.run(features, places)
    np.testing.assert_allclose(engine.run(features[order], places[order]), found[order], rtol=0, atol=1e-5)
    assert np.isfinite(found).all()
    assert found.std(axis=0).min() > 1e-3
    assert np.isfinite(engine.run(features[:1], places[:1])).all()


def test_what_is_for_networks_of_a_spot_is_refused_in_a_sentence(built, tmp_path):
    network, release = built
    title = find("hist2st" if "channels" in network.config.to_dict() else "histogene").title
    _, card = initialise(network.config, GENES)
    for options, what in (
        ({"precision": "fp16"}, "not as fp16"),
        ({"test_time": "dihedral8"}, "not as dihedral8"),
    ):
        with pytest.raises(ExportError, match=what) as error:
            build_release(network, card, tmp_path / "release", **options)
        assert title in str(error.value)
    with pytest.raises(ExportError, match="in two graphs, for which no engine is built"):
        add_engines(release, tmp_path / "release", EngineOptions(toolkit="tensorrt"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("patch_embedding", "the stage for patches on ONNX Runtime differs"),
        ("gene_head", "both stages on ONNX Runtime"),
    ],
)
def test_graphs_that_compute_something_else_are_no_release(built, part, words, tmp_path, monkeypatch):
    network, release = built
    other, card = initialise(network.config, GENES)
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        for weight in getattr(other, part).parameters():
            weight.mul_(1.01)

    def as_exported(file):
        def export(_, path):
            shutil.copyfile(release / file, path)
            return onnx.load(path)

        return export

    monkeypatch.setattr("m2ost_export.release.export_patch_stage", as_exported("m2ost/1/model.onnx"))
    monkeypatch.setattr("m2ost_export.release.export_slide_stage", as_exported("m2ost_sequence/1/model.onnx"))
    with pytest.raises(ExportError, match=f"refused: {words}"):
        build_release(other.eval(), card, tmp_path / "release")
    assert not list(tmp_path.iterdir())


def test_the_models_of_a_spot_level_release_have_the_names_that_they_had(split_release):
    models = {path.parent.name for path in split_release.glob("*/config.pbtxt")}
    assert models == {"m2ost", "m2ost_patches", "m2ost_slide", "row_guard", "slide_info", "slide_tiler"}
    raw = json.loads((split_release / Manifest.FILENAME).read_text())
    assert not {"level", "slide_level"} & raw["engine"].keys()
    for path in split_release.glob("*/**/*.pbtxt"):
        assert "level" not in parse_config(path.read_text()).parameters
