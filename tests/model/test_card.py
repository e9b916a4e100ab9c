"""``model.json``: both formats, and what a card may not say."""

import json

import numpy as np
import pytest
import torch
from m2ost.card import ModelCard
from m2ost.checkpoint import CARD, WEIGHTS, initialise, load, save
from m2ost.config import M2OSTConfig
from m2ost.network import M2OST
from m2ost.shipped import shipped_checkpoint
from m2ost.systems.registry import UnknownSystem, find
from m2ost.weights import CheckpointError
from safetensors.torch import load_file

CONFIG = M2OSTConfig(n_genes=2, dim=12, depth=1, heads=1, head_dim=4, ffn_dim=8, channel_dim=8)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "checkpoint", *initialise(CONFIG, ("A", "B")))
    return tmp_path / "checkpoint"


def edit(folder, change):
    card = json.loads((folder / CARD).read_text())
    change(card)
    (folder / CARD).write_text(json.dumps(card))


def test_the_card_says_all_that_serving_needs(folder):
    raw = json.loads((folder / CARD).read_text())
    assert raw["format"] == 2
    assert raw["architecture"] == {"name": "m2ost", **CONFIG.to_dict()}
    assert (raw["level"], raw["views"]) == ("spot", {"size_px": 224, "factors": [1, 2, 4]})
    plain = {"scale": 255, "mean": [0, 0, 0], "std": [1, 1, 1], "channel_order": "RGB", "layout": "row_major"}
    assert raw["normalisation"] == plain
    assert (raw["head"], raw["positions"], raw["max_spots"]) == ({"type": "regression"}, None, None)
    assert (raw["test_time"], raw["target"]) == ("none", "log1p_cpm_panel")


def test_format_1_is_an_m2ost_and_predicts_the_same_bytes():
    with shipped_checkpoint() as folder:
        raw = json.loads((folder / CARD).read_text())
        assert raw["format"] == 1
        model, card = load(folder)
        plain = M2OST(M2OSTConfig(**raw["architecture"])).eval()
        plain.load_state_dict({k: v.float() for k, v in load_file(folder / WEIGHTS).items()})
    assert (card.genes, card.target, card.test_time) == (tuple(raw["genes"]), raw["target"], "none")
    views = [torch.from_numpy(np.random.default_rng(i).integers(0, 256, (1, 224, 224, 3), np.uint8)) for i in range(3)]
    with torch.inference_mode():
        assert model(*views).numpy().tobytes() == plain(*views).numpy().tobytes()


def test_format_1_becomes_format_2_when_it_is_saved(folder):
    model, card = load(folder)
    sizes = CONFIG.to_dict()
    kept = ("genes", "trained", "mpp", "target", "provenance", "sha256")
    old = {"format": 1, "architecture": sizes, **{k: v for k, v in card.to_dict().items() if k in kept}}
    assert ModelCard.from_dict(json.loads(json.dumps(old))) == card
    assert save(folder.parent / "again", model, ModelCard.from_dict(old)) == card


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: card["views"].update(size_px=112), "views is"),
        (lambda card: card.update(level="slide"), "level is"),
        (lambda card: card["normalisation"].update(channel_order="BGR"), "normalisation is"),
        (lambda card: card.update(max_spots=5), "max_spots is"),
        (lambda card: card.update(test_time="twice"), "test_time must be none or dihedral8"),
        (lambda card: card["architecture"].update(name="m2osr"), "nearest known one is m2ost"),
        (lambda card: card["head"].update(bank_sha256="0"), "bank is not the one"),
        (lambda card: card.update(format=3), "reads 1 and 2"),
        (lambda card: card.pop("positions"), "positions"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(folder, change, words):
    edit(folder, change)
    with pytest.raises(CheckpointError, match=words):
        load(folder)


def test_an_unknown_system_names_the_nearest():
    with pytest.raises(UnknownSystem, match=r"unknown architecture 'M2-OTS'; the nearest known one is m2ost"):
        find("M2-OTS")
