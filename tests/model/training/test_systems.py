"""Every spot-level system learns in the same loop, and says what it learned from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from m2ost.checkpoint import load
from m2ost.data.datasets import read_sections
from m2ost.data.errors import DataError
from m2ost.data.views import ViewCache
from m2ost.evaluation.subjects import open_subject
from m2ost.systems.registry import build, find
from m2ost.training.config import ConfigError, config_from
from m2ost.training.loop import _parameter_groups
from m2ost.training.run import train
from m2ost_contract import Manifest, SlideLevel

from tests.support.releases import ENGINE
from tests.support.systems import SIZES, SPOT_LEVEL

PANEL = ("RED", "BLUE", "BOTH", "HOUSE")


def settings(tiny_raw, name, optim=(), **others):
    sizes = {k: list(v) if isinstance(v, tuple) else v for k, v in SIZES[name].items() if k != "bank_rows"}
    sizes = {**sizes, "image_px": 32}
    return {
        **tiny_raw,
        "model": {"name": name, **sizes},
        "optim": {**tiny_raw["optim"], "epochs": 2, **dict(optim)},
        **others,
    }


@pytest.mark.parametrize("name", SPOT_LEVEL)
def test_a_system_trains_resumes_and_is_judged(name, tiny_raw, tiny_data, tmp_path):
    raw = settings(tiny_raw, name)
    checkpoint = train(config_from(raw, "tiny"), tmp_path / "run")
    network, card = load(checkpoint)
    assert (card.trained, card.architecture.n_genes) == (True, 4)
    training = card.provenance["training"]
    assert (training["pretrained"], training["config"]["model"]["name"]) == ("from scratch", name)
    assert config_from(training["config"], "card").model == card.architecture
    fresh = build(card.architecture).state_dict()
    trained = {k: v for k, v in network.state_dict().items() if k.endswith("weight")}
    assert any(not torch.equal(v, fresh[k]) for k, v in trained.items())

    class Killed(BaseException):
        pass

    def die(row):
        raise Killed

    with pytest.raises(Killed):
        train(config_from(raw, "tiny"), tmp_path / "again", report=die)
    again, _ = load(train(config_from(raw, "tiny"), tmp_path / "again"))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in network.state_dict().items())
    section = next(s for s in read_sections(tiny_data) if s.name == "B2").expressed(PANEL)
    prediction = open_subject(checkpoint, ViewCache(tiny_data / "cache")).predict(section)
    assert prediction.values.shape == (len(section), 4)
    assert np.isfinite(prediction.values).all()


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_bleeps_bank_holds_the_training_spots_and_no_other(ema, tiny_raw, tiny_data, tmp_path):
    config = config_from(settings(tiny_raw, "bleep", optim={"ema": ema}), "tiny")
    network, card = load(train(config, tmp_path))
    spots = {s.name: s.expressed(PANEL).targets(PANEL) for s in read_sections(tiny_data)}
    bank = network.bank.expression.numpy()
    np.testing.assert_array_equal(bank, np.concatenate([spots["A1"], spots["A2"]]))
    held_out = {row.tobytes() for name in ("B1", "B2") for row in spots[name]}
    assert not held_out & {row.tobytes() for row in bank}
    assert (card.head["rows"], card.architecture.bank_rows) == (32, 32)
    assert "measured expression" in card.head["holds"]
    before = network.bank.embedding.clone()
    network.embed_bank()
    torch.testing.assert_close(network.bank.embedding, before, rtol=0, atol=1e-6)


def test_a_bank_without_enough_spots_is_refused(tiny_raw, tmp_path):
    raw = settings(tiny_raw, "bleep")
    raw["model"] |= {"neighbours": 40, "bank_rows": 64}
    with pytest.raises(Exception, match="a bank of 32 spots has no 40 nearest ones; train on more"):
        train(config_from(raw, "tiny"), tmp_path)


def test_views_of_another_resolution_are_learned_from_and_judged_on(tiny_raw, tiny_data, tmp_path):
    (section,) = [s for s in read_sections(tiny_data) if s.name == "B2"]
    mpp = 1.25 * section.mpp
    split = {"train": ["B1"], "validation": ["B2"]}
    raw = settings(tiny_raw, "deepspace", data={**tiny_raw["data"], "view_mpp": mpp}, split=split)
    checkpoint = train(config_from(raw, "tiny"), tmp_path)
    network, card = load(checkpoint)
    assert card.mpp == mpp
    cache = ViewCache(tiny_data / "cache")
    coarse, own = (cache.views(section, card.architecture.views, at) for at in (mpp, None))
    assert not np.array_equal(coarse, own)
    with torch.inference_mode():
        expected = network(torch.from_numpy(np.array(coarse[:, 0]))).numpy()
    for asked in (None, "model", mpp):
        found = open_subject(checkpoint, cache, view_mpp=asked).predict(section).values
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(DataError, match="section A1: its µm/px is unknown"):
        cache.views(next(s for s in read_sections(tiny_data) if s.name == "A1"), card.architecture.views, mpp)
    other = open_subject(checkpoint, cache, view_mpp=section.mpp).predict(section).values
    assert not np.allclose(other, expected)


def test_training_goes_on_from_pretrained_weights(tiny_raw, tmp_path):
    sizes = {**SIZES["stnet"], "image_px": 32}
    torch.manual_seed(3)
    donor = build(find("stnet").config(n_genes=1000, **sizes))
    torch.save(donor.state_dict(), tmp_path / "imagenet.pth")
    still = {"learning_rate": 1e-12, "ema": 0.0}
    raw = settings(tiny_raw, "stnet", optim=still, pretrained=str(tmp_path / "imagenet.pth"))
    network, card = load(train(config_from(raw, "tiny"), tmp_path / "run"))
    torch.testing.assert_close(network.features.conv0.weight, donor.features.conv0.weight)
    assert card.provenance["training"]["pretrained"]["file"] == "imagenet.pth"
    assert card.provenance["training"]["config"]["pretrained"] == "imagenet.pth"


def test_a_release_of_a_slide_level_system_is_judged_by_its_results(tmp_path):
    Manifest(replace(ENGINE, slide_level=SlideLevel(16, 8, 40)), {}, {}, {}).write(tmp_path)
    with pytest.raises(DataError, match="predicts a slide as a whole, from places on an array; score it with"):
        open_subject(tmp_path, ViewCache(tmp_path))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "stnett"}, "nearest known one is stnet"),
        ({"name": "stnet", "grwoth": 3}, "unknown field model.grwoth; the nearest known one is model.growth"),
        ({"name": "stnet", "layers": [1, "two"]}, "model.layers cannot be"),
        ({"name": "vit", "normalisation": {"scale": 3}}, "scale must be 255 or 1"),
    ],
)
def test_a_bad_architecture_is_named(model, words):
    raw = {"data": {"root": "x", "panel": "p"}, "split": {"train": ["A"], "validation": ["B"]}, "model": model}
    with pytest.raises((ConfigError, ValueError), match=words):
        config_from(raw, "run.yaml")


@pytest.mark.parametrize("name", sorted(SIZES))
def test_places_and_biases_do_not_decay_and_every_matrix_does(name):
    network = build(find(name).config(**SIZES[name]))
    decay, keep = _parameter_groups(network, 0.05)
    assert (decay["weight_decay"], keep["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    kept = {names[id(parameter)] for parameter in keep["params"]}
    table = ("x_embed.weight", "y_embed.weight", *find(name).tables)
    for parameter in decay["params"]:
        assert parameter.ndim in {2, 4}
        assert not names[id(parameter)].startswith(table)
    assert {name for name in names.values() if name.startswith(table)} <= kept
    assert len(decay["params"]) + len(keep["params"]) == len(names)
