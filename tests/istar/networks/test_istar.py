"""iStar's head, its weights' origin, and what must hold for its networks inside the pipeline."""

import numpy as np
import pytest
import torch
from m2ost.checkpoint import CheckpointError
from m2ost.peers.istar import Head, TorchNetworks, build
from m2ost_preprocess.istar.geometry import VARIANTS, plan
from m2ost_preprocess.istar.run import SlideRun
from m2ost_preprocess.istar.sizes import Sizes
from m2ost_preprocess.istar.stopwatch import Stopwatch
from m2ost_preprocess.readers import open_slide

from tests.preprocess.istar.conftest import ArraySlide

from .conftest import NARROW


def test_the_head_is_the_median_of_its_networks():
    torch.manual_seed(0)
    sizes = Sizes(n_genes=7, head_dim=16)
    head, features = Head(sizes).eval(), torch.randn(40, sizes.feature_dim)
    members = []
    for member in range(5):
        layers = []
        for weight, bias in zip(head.weights, head.biases, strict=True):
            layer = torch.nn.Linear(weight.shape[1], weight.shape[2])
            layer.weight.data, layer.bias.data = weight[member].T, bias[member, 0]
            layers += [layer, torch.nn.LeakyReLU(0.1)]
        members.append(torch.nn.Sequential(*layers[:-1], torch.nn.ELU(0.01)))
    assert sum(isinstance(layer, torch.nn.Linear) for layer in members[0]) == 5  # 579 → 256 ×4 → G
    expected = torch.stack([member(features) + 0.01 for member in members]).median(dim=0).values
    with torch.inference_mode():
        found = head(features)
    torch.testing.assert_close(found, expected)
    assert found.min() >= 0


def test_one_seed_gives_one_set_of_weights_and_random_ones_are_called_so():
    first, again, other = build(NARROW), build(NARROW), build(NARROW, seed=1)
    assert not first.pretrained
    assert first.weights == {}
    for name, value in first.vit256.state_dict().items():
        assert torch.equal(value, again.vit256.state_dict()[name])
    assert not torch.equal(first.vit256.pos_embed, other.vit256.pos_embed)


def test_weights_of_hipt_are_called_so_and_named(tmp_path):
    other = build(NARROW, seed=5)
    torch.save(other.vit256.state_dict(), tmp_path / "a.pth")
    torch.save(other.vit4k.state_dict(), tmp_path / "b.pth")
    model = build(NARROW, vit256=tmp_path / "a.pth", vit4k=tmp_path / "b.pth")
    assert model.pretrained
    assert set(model.weights) == {"vit256", "vit4k"}
    assert torch.equal(model.vit4k.pos_embed, other.vit4k.pos_embed)
    with pytest.raises(CheckpointError, match="both"):
        build(NARROW, vit256=tmp_path / "a.pth")


def patch_features(pixels, networks, variant="no_shift"):
    slide = ArraySlide(pixels)
    mask = np.zeros((8, 8), bool)
    mask[2:5, 1:6] = True
    work = plan(slide.size, 0.5, VARIANTS[variant], mask, sizes=networks.sizes)
    run = SlideRun(slide, work, networks, batch_rows=1, watch=Stopwatch())
    run.extract([batch for batch in run.batches if (work.positions[batch[0], 1:] < 4).all()])
    return run


def test_shifting_the_image_by_a_patch_shifts_its_features_bit_for_bit(svs, narrow):
    pixels, networks = np.array(open_slide(svs).read(300, 800, 1024, 1024)), TorchNetworks(narrow)
    features = patch_features(pixels, networks).features
    shifted = patch_features(np.roll(pixels, (256, 256), axis=(0, 1)), networks).features
    np.testing.assert_array_equal(shifted.cls_grid(0)[1:4, 1:4], features.cls_grid(0)[:3, :3])
    np.testing.assert_array_equal(shifted._tokens[16:64, 16:64], features._tokens[:48, :48])
    assert features.cls_grid(0)[:4, :4].std(axis=(0, 1)).min() > 1e-3


def test_tissue_has_the_features_of_the_whole_bit_for_bit(svs, narrow):
    pixels, networks = np.array(open_slide(svs).read(300, 800, 1024, 1024)), TorchNetworks(narrow)
    whole, tissue = (patch_features(pixels, networks, variant) for variant in ("no_shift", "tissue"))
    held = tissue.work.positions[1:, 1:]
    assert len(held) == 6
    for row, column in held:
        np.testing.assert_array_equal(tissue.features.cls_grid(0)[row, column], whole.features.cls_grid(0)[row, column])
