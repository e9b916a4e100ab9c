"""HIPT's networks against their published sizes, and against a reading of the description without PyTorch."""

import argparse
import pickle

import numpy as np
import pytest
import torch
from m2ost.weights import CheckpointError
from m2ost_istar.networks.hipt import TABLE, ViT4K, ViT256, interpolate, load_vit4k, load_vit256
from m2ost_istar.networks.istar import Head, build
from m2ost_istar.sizes import Sizes
from m2ost_preprocess.readers import open_slide
from scipy.special import erf, softmax
from torch.utils.flop_counter import FlopCounterMode

from ..narrow import NARROW


def cost(network, *shape):
    with torch.device("meta"):
        model, example = network(Sizes()), torch.empty(*shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()


def test_the_networks_have_the_published_sizes():
    parameters, flop = cost(ViT256, 1, 256, 256, 3)
    assert parameters == pytest.approx(21.67e6, rel=1e-3)
    assert flop == pytest.approx(12.28e9, rel=0.01)
    assert flop == pytest.approx(Sizes().patch_flop, rel=0.01)
    parameters, flop = cost(ViT4K, 20, 13, 384)
    assert parameters == pytest.approx(2.78e6, rel=1e-3)
    assert flop == pytest.approx(Sizes().region_flop(260), rel=0.01)
    _, flop = cost(Head, 100, 579)
    assert flop == 100 * Sizes().head_flop


# The description once more, in NumPy: double precision, explicit heads, Abramowitz's erf in GELU.


def norm(x, w, b):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * w + b


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def transformer(tokens, weights, depth, heads, rows, columns):
    table = torch.from_numpy(weights["pos_embed"][:, 1:].reshape(1, TABLE, TABLE, -1)).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / TABLE, (columns + 0.1) / TABLE)
    places = torch.nn.functional.interpolate(table, scale_factor=scale, mode="bicubic")[0].permute(1, 2, 0)
    x = np.concatenate(
        [weights["cls_token"][0] + weights["pos_embed"][0, :1], tokens + places.reshape(rows * columns, -1).numpy()]
    )
    width = x.shape[1] // heads
    for n in range(depth):
        w = {k.removeprefix(f"blocks.{n}."): v for k, v in weights.items() if k.startswith(f"blocks.{n}.")}
        q, k, v = np.split(linear(norm(x, w["norm1.weight"], w["norm1.bias"]), w, "attn.qkv"), 3, axis=1)
        mixed = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            mixed.append(softmax(q[:, part] @ k[:, part].T / np.sqrt(width), axis=1) @ v[:, part])
        x = x + linear(np.concatenate(mixed, axis=1), w, "attn.proj")
        x = x + linear(gelu(linear(norm(x, w["norm2.weight"], w["norm2.bias"]), w, "mlp.fc1")), w, "mlp.fc2")
    return norm(x, weights["norm.weight"], weights["norm.bias"])


def weights_of(model):
    """Weights of a size at which every part matters, in double precision."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return {k: v.double().numpy() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("sizes", [NARROW, Sizes(patch_depth=2)], ids=["narrow", "full width"])
def test_vit256_is_the_description_on_real_pixels(svs, sizes):
    model = ViT256(sizes).eval()
    weights = weights_of(model)
    pixels = np.stack([open_slide(svs).read(x, y, 256, 256) for x, y in [(800, 900), (0, 0)]])
    with torch.inference_mode():
        cls, tokens = model(torch.from_numpy(pixels))
    assert tokens.shape == (2, 256, sizes.patch_dim)
    for patch, of_patch, of_tokens in zip(pixels, cls.numpy(), tokens.numpy(), strict=True):
        unit = (patch / 255 - 0.5) / 0.5
        squares = unit.reshape(16, 16, 16, 16, 3).transpose(0, 2, 4, 1, 3).reshape(256, 3 * 256)
        kernel = weights["patch_embed.proj.weight"].reshape(sizes.patch_dim, 3 * 256)
        embedded = squares @ kernel.T + weights["patch_embed.proj.bias"]
        expected = transformer(embedded, weights, sizes.patch_depth, sizes.patch_heads, 16, 16)
        assert expected.shape[0] == 257
        np.testing.assert_allclose(of_patch, expected[0], atol=2e-4)
        np.testing.assert_allclose(of_tokens, expected[1:], atol=2e-4)


@pytest.mark.parametrize("grid", [(14, 14), (5, 9), (1, 1), (20, 3)])
def test_vit4k_is_the_description_on_grids_of_any_size(grid):
    model = ViT4K(NARROW).eval()
    weights = weights_of(model)
    cls = np.random.default_rng(0).standard_normal((*grid, 24))
    with torch.inference_mode():
        found = model(torch.from_numpy(cls.astype(np.float32))).numpy()
    embedded = gelu(linear(cls.reshape(-1, 24), weights, "phi.0"))
    expected = transformer(embedded, weights, NARROW.region_depth, NARROW.region_heads, *grid)
    np.testing.assert_allclose(found, expected[1:].reshape(*grid, 12), atol=2e-4)


@pytest.mark.parametrize("size", [(16, 16), (14, 14), (1, 2), (64, 50)])
def test_position_tables_are_resampled_as_pytorch_does(size):
    table = torch.randn(TABLE, TABLE, 5, generator=torch.Generator().manual_seed(0))
    scale = tuple((side + 0.1) / TABLE for side in size)
    expected = torch.nn.functional.interpolate(table.permute(2, 0, 1)[None], scale_factor=scale, mode="bicubic")[0]
    torch.testing.assert_close(interpolate(table, *size), expected.permute(1, 2, 0), atol=1e-5, rtol=0)


def test_float_pixels_are_those_of_uint8():
    narrow = build(NARROW)
    pixels = torch.randint(0, 256, (1, 256, 256, 3), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(narrow.vit256(pixels), narrow.vit256(pixels / 255))


# Checkpoints as DINO's training writes them.


def dino(model, prefix, **more):
    """A training checkpoint with everything that DINO stores beside the teacher."""
    backbone = {f"{prefix}backbone.{k}": v.clone() for k, v in model.state_dict().items()}
    head = {f"{prefix}head.mlp.0.weight": torch.zeros(8, 4), f"{prefix}head.last_layer.weight_g": torch.ones(4, 1)}
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    args = argparse.Namespace(arch="vit_small", patch_size=16, local_crops_scale=(0.05, 0.4), use_fp16=True)
    student = {f"module.{k}": torch.zeros(1) for k in backbone}
    return {
        "student": student,
        "teacher": backbone | head,
        "optimizer": optimizer,
        "epoch": 100,
        "args": args,
        "dino_loss": {"center": torch.zeros(1, 8)},
        "fp16_scaler": {"scale": 65536.0},
        **more,
    }


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("network", "load"), [(ViT256, load_vit256), (ViT4K, load_vit4k)])
def test_a_checkpoint_of_dino_loads_into_the_network_whole(tmp_path, prefix, network, load):
    original = network(NARROW).eval()
    torch.save(dino(original, prefix), tmp_path / "hipt.pth")
    loaded = load(tmp_path / "hipt.pth", NARROW)
    assert not loaded.training
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    torch.save(original.state_dict(), tmp_path / "plain.pth")
    load(tmp_path / "plain.pth", NARROW)


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


@pytest.mark.parametrize("place", ["args", "teacher"])
def test_code_in_a_checkpoint_is_never_run(tmp_path, place):
    torch.save(dino(ViT256(NARROW), "", **{place: Hostile()}), tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match="never run"):
        load_vit256(tmp_path / "hostile.pth", NARROW)
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match="refused"):
        load_vit256(tmp_path / "raw.pth", NARROW)


def test_a_namespace_that_hides_code_is_refused(tmp_path):
    checkpoint = dino(ViT256(NARROW), "")
    checkpoint["args"].callback = Hostile()
    torch.save(checkpoint, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match="never run"):
        load_vit256(tmp_path / "hostile.pth", NARROW)


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_vit256(tmp_path / "absent.pth")
    torch.save(dino(ViT4K(NARROW), ""), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"missing patch_embed\.proj\.weight.*and \d+ more"):
        load_vit256(tmp_path / "other.pth", NARROW)
    torch.save(dino(ViT256(NARROW), ""), tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match=r"cls_token has shape .1, 1, 24., expected .1, 1, 384"):
        load_vit256(tmp_path / "narrow.pth", Sizes(patch_depth=1))
    torch.save({"teacher": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no weights"):
        load_vit256(tmp_path / "list.pth", NARROW)
