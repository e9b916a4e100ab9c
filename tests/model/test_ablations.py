"""The article's ablations: levels that are not looked at, modules that the network goes without."""

import json

import pytest
import torch
from m2ost.card import ModelCard
from m2ost.checkpoint import load, save
from m2ost.complexity import count
from m2ost.config import M2OSTConfig
from m2ost.network import M2OST
from m2ost_export.errors import ExportError
from m2ost_export.forms import engine_form, only_m2ost

from .test_network import SMALL, views_of

CUMULATIVE = ("dpe", "itmm", "ctmm", "ccmm")


def parameters(**changes):
    return count(M2OSTConfig(**changes)).parameters


def test_parameters_come_to_those_that_the_article_prints_but_for_what_its_profiler_passes_over():
    # Millions. The article's are thop's, without tables and cls: three tables of 197 × 192 where there is no DPE.
    tables = 3 * 197 * 192 + 192
    unused = 4 * 2 * 576  # norms of ITMM, which it does not see either
    found = [parameters(without=CUMULATIVE[:n]) - tables - (unused if n == 1 else 0) for n in (1, 2, 3)]
    assert [n / 1e6 for n in found] == pytest.approx([7.76, 12.88, 10.66], rel=0.003)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        # A block of CTMM: a norm, nine projections without bias, three with; of CCMM: a norm and two layers.
        ({"without": ("ctmm",)}, 4 * (2 * 192 + 9 * 192 * 192 + 3 * (384 * 192 + 192))),
        ({"without": ("ccmm",)}, 4 * (2 * 576 + 576 * 384 + 384 + 384 * 576 + 576)),
    ],
)
def test_a_module_that_is_left_out_takes_its_parameters_with_it(changes, missing):
    assert parameters(**changes) == parameters() - missing


def test_a_level_that_is_not_looked_at_costs_its_own_weights():
    table, projections = 393 * 192, 4 * (4 * 192 * 192 + 192)  # of level 1, and of its ITMM
    cross = 4 * (3 * (3 * 192 * 192 + 384 * 192 + 192) - 2 * (3 * 192 * 192 + 192 * 192 + 192))
    channel = 4 * (2 * (576 - 384) + 2 * 192 * 384 + 192)
    assert parameters() - parameters(levels=(0, 2)) == table + projections + cross + channel + 192 * 250
    assert parameters(n_levels=2, levels=(0, 1)) == parameters(n_levels=2)


def test_a_view_that_is_not_looked_at_changes_nothing():
    torch.manual_seed(0)
    model = M2OST(SMALL.resized(levels=(0, 2))).eval()
    first, second, third = views_of(SMALL)
    with torch.inference_mode():
        expected = model(first, second, third)
        assert torch.equal(model(first, 255 - second, third), expected)
        assert not torch.equal(model(255 - first, second, third), expected)
        assert not torch.equal(model(first, second, 255 - third), expected)


@pytest.mark.parametrize("without", [CUMULATIVE[:n] for n in (1, 2, 3, 4)] + [("itmm",), ("ctmm",), ("ccmm",)], ids=str)
def test_what_is_left_learns_every_weight(without):
    torch.manual_seed(0)
    config = SMALL.resized(without=without)
    model, views = M2OST(config), views_of(config)
    model(*views).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_nothing_taken_away_is_written_as_it_always_was_and_what_is_comes_back(tmp_path):
    assert set(M2OSTConfig().to_dict()) == {
        "n_genes", "n_levels", "image_px", "patch_px", "dim", "depth", "heads", "head_dim", "ffn_dim", "channel_dim",
        "mask_ratio", "token_drop",
    }  # fmt: skip
    config = SMALL.resized(n_levels=2, levels=(1,), without=("itmm",))
    save(tmp_path / "checkpoint", M2OST(config), ModelCard(config, tuple("abcde"), trained=False))
    assert load(tmp_path / "checkpoint")[1].architecture == config
    written = json.loads((tmp_path / "checkpoint" / "model.json").read_text())["architecture"]
    assert (written["levels"], written["without"]) == ([1], ["itmm"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"levels": (0, 1)}, "levels must rise from 0 or more to 2, the last of n_levels"),
        ({"levels": (2, 0)}, "levels must rise"),
        ({"levels": (-1, 2)}, "levels must rise"),
        ({"without": ("dpee",)}, "without must be of dpe, itmm, ctmm, ccmm"),
        ({"without": ("dpe", "dpe")}, "each once"),
    ],
)
def test_what_cannot_be_taken_away_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        M2OSTConfig(**changes)


def test_what_a_network_without_a_module_is_not_exported_as_is_said():
    model = M2OST(SMALL.resized(without=("ctmm",)))
    with pytest.raises(ExportError, match="an M2OST without ctmm is exported in fp32 alone, not as fp16"):
        engine_form(model, "fp16")
    with pytest.raises(ExportError, match="cpu-bf16 is M2OST's with all of its modules, and this is an M2OST without"):
        only_m2ost(model, "the profile cpu-bf16")
