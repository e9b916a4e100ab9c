"""`m2ost init`, `convert` and `info` of any system."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from m2ost.checkpoint import load
from m2ost.systems.registry import SYSTEMS, build
from m2ost_cli.main import app
from m2ost_cli.model_commands import SYSTEM_NAMES
from m2ost_contract import M2OSTError
from typer.testing import CliRunner

from tests.support.systems import N_GENES, small


def m2ost(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False).output


def error_of(*arguments):
    with pytest.raises(M2OSTError) as error:
        m2ost(*arguments)
    return str(error.value)


def test_the_help_names_every_system():
    assert tuple(SYSTEM_NAMES.split(", ")) == tuple(SYSTEMS)


def test_a_vit_from_pretrained_weights_with_their_own_constants(tmp_path):
    sizes = ("--system", "vit", "--depth", 1, "--dim", 64, "--image-px", 32, "--outputs", 3)
    m2ost("init", *sizes, "--seed", 1, "--out", tmp_path / "donor")
    donor = load(tmp_path / "donor")[0].state_dict()
    torch.save({k: v for k, v in donor.items() if not k.startswith("head.")}, tmp_path / "timm.pth")
    half = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--mpp", 0.5, "--test-time", "dihedral8")
    output = m2ost("init", *sizes, "--pretrained", tmp_path / "timm.pth", *half, "--out", tmp_path / "vit")
    assert "UNTRAINED ViT, 3 outputs" in output
    network, card = load(tmp_path / "vit")
    assert torch.equal(network.blocks[0].attn.qkv.weight, donor["blocks.0.attn.qkv.weight"])
    assert not torch.equal(network.head.weight, donor["head.weight"])
    raw = json.loads((tmp_path / "vit" / "model.json").read_text())
    assert (raw["normalisation"]["mean"], raw["mpp"], raw["test_time"]) == ([0.5] * 3, 0.5, "dihedral8")
    assert raw["provenance"]["pretrained"]["file"] == "timm.pth"
    assert network.normalise.normalisation == card.architecture.normalisation
    assert "ViT" in m2ost("info", tmp_path / "vit")


@pytest.mark.usefixtures("heavy")
def test_deepspaces_views_cover_two_and_a_half_spots(tmp_path):
    m2ost("init", "--system", "deepspace", "--image-px", 32, "--spot-um", 55, "--outputs", 2, "--out", tmp_path / "d")
    assert load(tmp_path / "d")[1].mpp * 32 == pytest.approx(2.5 * 55)


def test_a_bleep_is_converted_with_its_bank(tmp_path):
    network = build(small("bleep"))
    torch.save({k: v for k, v in network.state_dict().items() if not k.startswith("bank.")}, tmp_path / "bleep.pth")
    genes = [f"g{i}" for i in range(N_GENES)]
    (tmp_path / "panel.txt").write_text("\n".join(genes))
    bank = anndata.AnnData(np.random.default_rng(0).random((60, N_GENES), np.float32), var=pd.DataFrame(index=genes))
    bank.write_h5ad(tmp_path / "bank.h5ad")
    given = (tmp_path / "bleep.pth", "--panel", tmp_path / "panel.txt", "--channel-order", "RGB", "--target", "x")
    m2ost("convert", *given, "--bank", tmp_path / "bank.h5ad", "--out", tmp_path / "bleep")
    _, card = load(tmp_path / "bleep")
    assert (card.target, card.architecture.normalisation.channel_order) == ("x", "RGB")
    assert card.head["rows"] == 60


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--system", "vit", "--levels", 2), "--levels: ViT has no such size"),
        (("--system", "stnet", "--spot-um", 100), "--spot-um is DeepSpaCE's"),
        (("--system", "deepspace", "--spot-um", 100, "--mpp", 1), "stands for --mpp"),
        (("--mean", "0,0,0"), "M2OST takes pixels divided by 255"),
        (("--system", "vit", "--dim", 64, "--depth", 1, "--pretrained", "absent.pth"), "absent.pth: no such file"),
    ],
)
def test_what_cannot_be_is_said(options, words, tmp_path):
    assert words in error_of("init", *options, "--outputs", 3, "--out", tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())
