"""Systems that learn from a slide a step: they go on after a kill to the same weights, and learn on real spots."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from m2ost.checkpoint import load
from m2ost.data.datasets import read_sections
from m2ost.data.errors import DataError
from m2ost.data.views import ViewCache
from m2ost.evaluation.subjects import open_subject
from m2ost.systems.registry import build
from m2ost.training.config import config_from
from m2ost.training.hist2st import Hist2StLosses, Hist2StObjective, vary_slide, zero_inflated_loss
from m2ost.training.loop import Workers
from m2ost.training.run import train
from m2ost.training.spots import known_places, spot_set
from scipy import stats
from torch.nn.functional import mse_loss

from tests.support.data import shared_file
from tests.support.systems import SIZES, small

SLIDE_LEVEL = ("histogene", "hist2st")


def settings(raw, name, **optim):
    return {**raw, "model": {"name": name, **SIZES[name], "table": 64}, "optim": {"precision": "fp32", **optim}}


@pytest.mark.parametrize("name", SLIDE_LEVEL)
def test_a_killed_run_goes_on_to_the_same_bytes_and_is_judged(name, tiny_raw, tiny_data, tmp_path):
    config = config_from(settings(tiny_raw, name, epochs=3), name)
    checkpoint = train(config, tmp_path / "run")

    class Killed(BaseException):
        pass

    def die(row):
        if row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(config, tmp_path / "again", report=die)
    again = train(config, tmp_path / "again")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (checkpoint, again)]
    assert weights[0] == weights[1]
    network, card = load(checkpoint)
    assert not hasattr(network, "coef"), "what only training needs is left out"
    assert card.provenance["training"]["config"]["model"].get("training_heads") in (None, True)
    (section,) = read_sections(tiny_data, ["B2"])
    cache = ViewCache(tiny_data / "cache")
    predicted = open_subject(checkpoint, cache).predict(section).values
    places = torch.from_numpy(known_places(section, card.architecture))
    views = torch.from_numpy(np.array(cache.views(section, card.architecture.views)[:, 0]))
    with torch.inference_mode():
        expected = network.slide(network.patches(views), places).numpy()
    np.testing.assert_allclose(predicted, expected, atol=1e-5)


@pytest.mark.usefixtures("heavy")
def test_they_learn_on_real_spots(tmp_path):
    genes = shared_file("gene_panels/her2.txt").read_text().split()
    (tmp_path / "panel.txt").write_text("\n".join(genes[:8]))
    raw = {
        "data": {
            "root": str(shared_file("her2st")),
            "panel": str(tmp_path / "panel.txt"),
            "cache": str(tmp_path / "views"),
        },
        "split": {"train": ["C2"], "validation": ["C3"]},
    }
    for name in SLIDE_LEVEL:
        found = settings(raw, name, epochs=20 if name == "histogene" else 6, learning_rate=3e-3)
        found["hist2st"] = {"distilled": 1}
        found["model"] |= {"image_px": 28} | ({"dim": 64, "hidden": 64} if name == "histogene" else {})
        found["augment"] = {"dihedral": False, "stain": 0, "brightness": 0}
        _, card = load(train(config_from(found, name), tmp_path / name))
        assert card.provenance["training"]["spots"] == {"C2": 185, "C3": 179}
        with (tmp_path / name / "log.csv").open() as file:
            losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
        assert losses[-1] < 0.97 * losses[0]


def test_places_that_a_network_does_not_know_are_refused_by_name(tiny_data, tmp_path):
    (section,) = read_sections(tiny_data, ["A1"])
    model = small("histogene")
    with pytest.raises(DataError, match=r"section A1: spot 8 has array position \[8, 1\], outside the 8"):
        spot_set([section], ("RED",), "log1p_cpm_panel", replace(model, image_px=32), ViewCache(tmp_path))
    with pytest.raises(DataError, match="section A1: a network that predicts a slide as a whole needs places"):
        known_places(replace(section, array=None), model)


def test_a_slide_is_not_shared_by_processes(tiny_raw, tmp_path, monkeypatch):
    raw = {**tiny_raw, "model": {"name": "histogene", **SIZES["histogene"]}}
    monkeypatch.setattr("m2ost.training.run.workers", lambda device: _Team())
    with pytest.raises(DataError, match="HisToGene learns from a slide a step, which 2 processes cannot share"):
        train(config_from(raw, "tiny"), tmp_path)


class _Team:
    def __enter__(self):
        return Workers(0, 2, torch.device("cpu"))

    def __exit__(self, *exc):
        pass


def test_the_loss_of_counts_is_the_likelihood_that_scipy_computes():
    rng = np.random.default_rng(0)
    counts = rng.poisson(2, (6, 4)).astype(np.float32)
    counts[0] += 1  # no total is 0
    mean, dispersion, dropout = (rng.normal(size=(6, 4)).astype(np.float32) for _ in range(3))
    found = zero_inflated_loss(*map(torch.from_numpy, (counts, mean, dispersion, dropout)))
    totals = counts.sum(axis=1, keepdims=True)
    expected = np.exp(mean) * totals / np.sort(totals, axis=0)[2]  # PyTorch's median of six is the third
    shape, share = np.log1p(np.exp(dispersion)), 1 / (1 + np.exp(-dropout))
    likelihood = (1 - share) * stats.nbinom.pmf(counts, shape, shape / (shape + expected)) + share * (counts == 0)
    assert found.item() == pytest.approx(-np.log(likelihood).mean(), rel=1e-4)


def test_a_slides_views_are_varied_by_one_draw():
    view = torch.rand(1, 9, 9, 3).expand(4, -1, -1, -1)
    torch.manual_seed(0)
    varied = vary_slide(view)
    assert torch.equal(varied[0], varied[3])
    assert not torch.equal(varied, view)
    seen = [vary_slide(view) for _ in range(60)]
    grey = [torch.equal(v[..., 0], v[..., 1]) for v in seen]
    assert 0 < sum(grey) < 30
    torch.testing.assert_close(varied[:, 4, 4], view[:, 4, 4])  # turned about the centre


def test_each_of_hist2sts_losses_counts_as_it_is_weighted():
    network = build(small("hist2st", training_heads=True)).eval()
    rng = torch.Generator().manual_seed(1)
    views = torch.rand(6, 1, 14, 14, 3, generator=rng)
    target, places = torch.rand(6, 5, generator=rng), torch.tensor([[i, 1] for i in range(6)])
    counts = torch.randint(1, 9, (6, 5), generator=rng).float()

    def loss(**weights):
        torch.manual_seed(2)
        losses = Hist2StLosses(**weights)
        return Hist2StObjective(network, torch.ones(5), "fp32", "mse", losses)(views, target, places, counts)

    with torch.inference_mode():
        plain = mse_loss(network.slide(network.patches(views[:, 0]), places), target)
        only_counts, only_distilled = loss(counts=1, distillation=0) - plain, loss(counts=0, distillation=1) - plain
        assert only_counts > 0
        assert only_distilled > 0
        both = loss(counts=0.25, distillation=0.5)
    torch.testing.assert_close(both, plain + only_counts / 4 + only_distilled / 2)
