"""Checkpoints: what is written is what is read, and nothing else passes."""

import json

import pytest
import torch
from m2ost.checkpoint import CARD, WEIGHTS, initialise, load, read_panel, save
from m2ost.config import M2OSTConfig
from m2ost.weights import CheckpointError

CONFIG = M2OSTConfig(n_genes=3, dim=12, depth=1, heads=1, head_dim=4, ffn_dim=8, channel_dim=8)
GENES = ("A", "B", "C")


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "checkpoint", *initialise(CONFIG, GENES, seed=5))
    return tmp_path / "checkpoint"


def test_a_checkpoint_survives_saving(folder):
    model, card = load(folder)
    fresh, _ = initialise(CONFIG, GENES, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert (card.genes, card.trained, card.architecture) == (GENES, False, CONFIG)
    assert not model.training


def test_one_seed_gives_one_set_of_weights_and_leaves_the_callers_alone(folder, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    save(tmp_path / "again", *initialise(CONFIG, GENES, seed=5))
    assert torch.equal(torch.rand(1), expected)
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_a_checkpoint_is_never_overwritten(folder):
    with pytest.raises(FileExistsError, match="never overwritten"):
        save(folder, *initialise(CONFIG, GENES))
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("m2ost.checkpoint.save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / "checkpoint", *initialise(CONFIG, GENES))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["weights", "card", "no weights", "no card", "swapped"])
def test_damage_is_named(folder, damage):
    if damage == "weights":
        data = bytearray((folder / WEIGHTS).read_bytes())
        data[-1] ^= 1
        (folder / WEIGHTS).write_bytes(data)
    elif damage == "card":
        (folder / CARD).write_text("{")
    elif damage == "swapped":
        card = json.loads((folder / CARD).read_text())
        card["architecture"]["depth"] = 2
        (folder / CARD).write_text(json.dumps(card))
    else:
        (folder / (WEIGHTS if damage == "no weights" else CARD)).unlink()
    with pytest.raises(CheckpointError, match=str(folder)):
        load(folder)


@pytest.mark.parametrize("genes", [("A", "B"), ("A", "B", "B"), ("A", "", "C"), ("A", "B\nD", "C")])
def test_a_panel_that_does_not_fit_is_refused(genes):
    with pytest.raises(CheckpointError, match="gene"):
        initialise(CONFIG, genes)


def test_panels(tmp_path):
    path = tmp_path / "panel.txt"
    path.write_text("B2M\n\n  DDX5 \n")
    assert read_panel(path) == ("B2M", "DDX5")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_panel(tmp_path / "absent.txt")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_panel(path)
