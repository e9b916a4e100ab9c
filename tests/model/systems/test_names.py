"""Weights under every public name land where they belong, and what does not fit is named."""

import re
from importlib import import_module

import anndata
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from m2ost.architecture import IMAGENET
from m2ost.checkpoint import initialise, load, save
from m2ost.convert import convert
from m2ost.module import Normalise
from m2ost.pretrained import load_pretrained
from m2ost.systems.registry import SYSTEMS, build, find
from m2ost.weights import CheckpointError
from safetensors.torch import save_file
from torch.nn.functional import conv2d

from tests.support.data import REPOSITORY
from tests.support.systems import N_GENES, SIZES, small

GENES = tuple(f"g{i}" for i in range(N_GENES))

# Of a network's own key: the public one, as patterns. Each naming is a way in which somebody's file spells a system.
TORCHVISION_VIT = [
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.(weight|bias)$", r".self_attention.in_proj_\1"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^blocks\.", "encoder.layers.encoder_layer_"),
]
NAMINGS = {
    "torchvision": ("stnet", []),
    "torchvision before 2018": ("stnet", [(r"(denselayer\d+\.)(norm|conv)([12])\.", r"\1\2.\3.")]),
    "ResNet of torchvision and timm": ("resnet50", []),
    "ViT of torchvision": ("vit", TORCHVISION_VIT),
    "ViT of torchvision before 2022": (
        "vit",
        [*TORCHVISION_VIT, (r"\.mlp\.0\.", ".mlp.linear_1."), (r"\.mlp\.3\.", ".mlp.linear_2.")],
    ),
    "ViT of timm": ("vit", []),
    "CrossViT of IBM": ("crossvit", []),
    "CrossViT of timm": ("crossvit", [(r"^(pos_embed|cls_token)\.(\d)", r"\1_\2")]),
    "VGG of torchvision": ("deepspace", []),
    "HisToGene": ("histogene", []),
    "Hist2ST": ("hist2st", []),
    "BLEEP": ("bleep", []),
    "BLEEP before": ("bleep", [(r"^spot_projection\.", "well_projection.")]),
}


def random_state(name):
    torch.manual_seed(0)
    fresh = build(small(name)).state_dict()
    return {k: torch.randn_like(v) if v.is_floating_point() else v + 3 for k, v in fresh.items() if "bank." not in k}


def public(state, patterns):
    def spelled(key):
        for pattern, replacement in patterns:
            key = re.sub(pattern, replacement, key)
        return key

    return {spelled(key): value for key, value in state.items()}


def bank(folder, genes=GENES, rows=60):
    path = folder / "bank.h5ad"
    values = np.random.default_rng(0).random((rows, len(genes)), np.float32)
    anndata.AnnData(values, var=pd.DataFrame(index=list(genes))).write_h5ad(path)
    return path, values


@pytest.mark.parametrize("form", ["plain", "parallel", "lightning", "st-net", "safetensors"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_conversion_is_exact(naming, form, tmp_path):
    name, patterns = NAMINGS[naming]
    ours = random_state(name)
    theirs = public(ours, patterns)
    assert len(theirs) == len(ours)
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(theirs, path)
    elif form == "parallel":
        torch.save({f"module.{k}": v for k, v in theirs.items()}, path)
    elif form == "lightning":
        torch.save({"state_dict": theirs, "epoch": 3}, path)
    elif form == "st-net":
        torch.save({"model": theirs, "optim": {"lr": 1e-6}}, path)
    else:
        torch.save(theirs, path)
    options = {"bank": bank(tmp_path)[0]} if name == "bleep" else {}
    network, card = convert(path, GENES, **options)
    found = network.state_dict()
    for key, value in ours.items():
        assert torch.equal(found[key], value), key
    assert (card.trained, card.target) == (True, find(name).target)
    if name != "bleep":  # of purely convolutional networks no weight tells the size of a view
        assert card.architecture == small(name, **({"image_px": 224} if name in ("stnet", "resnet50") else {}))
    save(tmp_path / "checkpoint", network, card)
    again, read = load(tmp_path / "checkpoint")
    assert read.architecture == card.architecture
    assert all(torch.equal(again.state_dict()[key], value) for key, value in found.items())


@pytest.mark.parametrize(
    ("name", "keys"),
    {
        "stnet": "features.conv0.weight features.norm0.running_mean features.denseblock1.denselayer2.norm1.bias "
        "features.denseblock1.denselayer2.conv2.weight features.transition1.norm.weight "
        "features.transition1.conv.weight features.norm5.running_var classifier.bias",
        "resnet50": "conv1.weight bn1.num_batches_tracked layer1.0.conv3.weight layer1.0.downsample.0.weight "
        "layer1.0.downsample.1.running_var layer2.1.bn2.bias fc.weight",
        "deepspace": "features.0.bias features.28.weight classifier.0.weight classifier.3.bias classifier.6.weight",
        "crossvit": "pos_embed.0 cls_token.1 patch_embed.1.proj.bias blocks.1.blocks.1.0.norm1.weight "
        "blocks.0.blocks.1.1.attn.qkv.bias blocks.0.blocks.0.0.attn.proj.weight blocks.0.blocks.0.0.mlp.fc2.bias "
        "blocks.1.projs.0.0.weight blocks.1.projs.1.2.bias blocks.0.fusion.1.norm1.bias blocks.0.fusion.0.attn.wq.bias "
        "blocks.0.fusion.0.attn.proj.weight blocks.0.revert_projs.0.2.weight norm.1.bias head.1.weight",
        "bleep": "image_encoder.model.layer1.0.bn3.weight image_projection.projection.weight image_projection.fc.bias "
        "spot_projection.layer_norm.weight",
        "histogene": "patch_embedding.weight x_embed.weight y_embed.weight vit.transformer.layers.1.0.norm.bias "
        "vit.transformer.layers.1.0.fn.to_qkv.weight vit.transformer.layers.0.0.fn.to_out.0.bias "
        "vit.transformer.layers.0.1.norm.weight vit.transformer.layers.0.1.fn.net.0.bias "
        "vit.transformer.layers.0.1.fn.net.3.weight gene_head.0.weight gene_head.1.bias",
        "hist2st": "patch_embedding.weight "
        "vit.transformer.layer1.1.dw.0.weight vit.transformer.layer1.0.dw.1.running_var "
        "vit.transformer.layer1.0.dw.3.bias vit.transformer.layer1.0.dw.4.weight vit.transformer.layer1.0.pw.0.weight "
        "vit.transformer.layer1.0.pw.2.bias vit.transformer.layer2.1.attn.fn.to_qkv.weight "
        "vit.transformer.layer2.0.attn.norm.weight vit.transformer.layer2.0.attn.fn.to_out.0.bias "
        "vit.transformer.layer2.0.ff.fn.net.3.weight vit.transformer.layer3.2.weight "
        "vit.transformer.jknet.0.weight_ih_l1 vit.transformer.jknet.0.bias_hh_l0 vit.transformer.down.0.weight "
        "gene_head.1.weight",
    }.items(),
)
def test_modules_bear_the_public_names(name, keys):
    assert set(keys.split()) <= set(build(small(name)).state_dict())


def test_heads_that_only_training_needs_are_left_out(tmp_path):
    state = random_state("hist2st")
    training = build(small("hist2st", training_heads=True)).state_dict()
    extra = {k: v for k, v in training.items() if k not in state}
    assert {k.split(".")[0] for k in extra} == {"mean", "disp", "pi", "coef"}
    torch.save(state | extra, tmp_path / "weights.pth")
    assert set(convert(tmp_path / "weights.pth", GENES)[0].state_dict()) == set(state)


@pytest.mark.parametrize("name", [name for name in SIZES if name != "bleep"])
def test_what_is_missing_unexpected_or_misshapen_is_named(name, tmp_path):
    state = random_state(name)
    keys = [key for key in state if key.endswith("bias")]
    gone, misshapen = keys[0], keys[1]
    del state[gone]
    state[misshapen], state["extra"] = torch.zeros(99), torch.zeros(1)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path / "weights.pth", GENES, system=name)
    for words in (f"missing {gone}", "unexpected extra", f"{misshapen} has shape (99,)"):
        assert words in str(error.value)


def test_weights_of_another_system_are_told(tmp_path):
    torch.save(random_state("resnet50"), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights of resnet50, not of stnet; give --system resnet50"):
        convert(tmp_path / "weights.pth", GENES, system="stnet")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not weights of ViT: missing patch_embed"):
        convert(tmp_path / "other.pth", GENES, system="vit")


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name not in ("m2ost", "histogene", "hist2st")])
def test_pretrained_weights_start_all_but_the_output_layers(name, tmp_path):
    donor = "resnet50" if name == "bleep" else name
    sizes = {"layers": (1, 1)} if name == "bleep" else {}
    torch.manual_seed(1)
    state = build(find(donor).config(n_genes=9, **{**SIZES[donor], **sizes})).state_dict()
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "imagenet.pth")
    network, _ = initialise(small(name), GENES)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    told = load_pretrained(network, tmp_path / "imagenet.pth")
    assert told["file"] == "imagenet.pth"
    after = network.state_dict()
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert changed
    assert not any(key.startswith(find(name).fresh) for key in changed)
    prefix = "image_encoder.model." if name == "bleep" else ""
    for key, value in state.items():
        if f"{prefix}{key}" in after and not key.startswith(find(donor).fresh):
            assert torch.equal(after[f"{prefix}{key}"], value)
    torch.save({**state, "strange": torch.zeros(1)}, tmp_path / "strange.pth")
    with pytest.raises(CheckpointError, match="unexpected strange"):
        load_pretrained(network, tmp_path / "strange.pth")


def test_a_file_of_convolutions_alone_starts_a_vgg_but_not_of_some_of_its_layers(tmp_path):
    state = random_state("deepspace")
    trunk = {key: value for key, value in state.items() if key.startswith("features.")}
    torch.save(trunk, tmp_path / "trunk.pth")
    network, _ = initialise(small("deepspace"), GENES)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load_pretrained(network, tmp_path / "trunk.pth")
    for key, value in network.state_dict().items():
        assert torch.equal(value, trunk.get(key, before[key])), key
    torch.save({**trunk, "classifier.0.bias": state["classifier.0.bias"]}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="missing classifier"):
        load_pretrained(network, tmp_path / "part.pth")


def test_keras_convolutions_see_of_torchvisions_pixels_what_they_saw_of_keras(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    script = import_module("vgg16_trunk")
    rng, held, taken = np.random.default_rng(0), [], 3
    for block, depth in enumerate(script.BLOCKS, start=1):
        for layer in range(1, depth + 1):
            name = f"functional_1/block{block}_conv{layer}_1"
            for suffix, shape in (("convolution/ReadVariableOp:0", (4, taken, 3, 3)), ("Squeeze:0", (4,))):
                values = rng.normal(size=shape).astype(np.float32)
                held.append(onnx.numpy_helper.from_array(values, f"{name}/{suffix}"))
            taken = 4
    found = script.trunk(onnx.helper.make_model(onnx.helper.make_graph([], "vgg", [], [], held)))
    assert set(found) == {key for key in random_state("deepspace") if key.startswith("features.")}
    kernel, bias = (torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in held[:2])
    pixels = torch.rand(1, 3, 9, 9)
    keras = (255 * pixels - torch.tensor(script.KERAS_MEAN).view(3, 1, 1)).float().flip(1)
    ours = Normalise(IMAGENET)(pixels.permute(0, 2, 3, 1))
    first = (torch.from_numpy(found[f"features.0.{part}"]) for part in ("weight", "bias"))
    torch.testing.assert_close(conv2d(ours, *first), conv2d(keras, kernel, bias), rtol=1e-4, atol=1e-2)


def test_pretrained_weights_of_another_system_are_told(tmp_path):
    torch.save(random_state("deepspace"), tmp_path / "vgg.pth")
    network, _ = initialise(small("vit"), GENES)
    with pytest.raises(CheckpointError, match="not weights of ViT: these are weights of deepspace"):
        load_pretrained(network, tmp_path / "vgg.pth")


def test_a_bleep_keeps_its_bank_and_knows_its_panel(tmp_path):
    torch.save(random_state("bleep"), tmp_path / "bleep.pth")
    path, values = bank(tmp_path, genes=("other", *reversed(GENES)))
    network, card = convert(tmp_path / "bleep.pth", GENES, bank=path)
    assert torch.equal(network.bank.expression, torch.from_numpy(values[:, :0:-1].copy()))
    assert card.provenance["bank"]["spots"] == 60
    card = save(tmp_path / "checkpoint", network, card, half=True)
    assert card.head["holds"].startswith("measured expression")
    again, read = load(tmp_path / "checkpoint")
    assert (read.bank_sha256, read.architecture.bank_rows) == (card.bank_sha256, 60)
    for name in ("embedding", "expression"):
        assert torch.equal(getattr(again.bank, name), getattr(network.bank, name)), "a bank is never rounded"


@pytest.mark.parametrize("rows", [60, 7])
def test_a_bank_that_does_not_fit_is_refused(rows, tmp_path):
    torch.save(random_state("bleep"), tmp_path / "bleep.pth")
    with pytest.raises(CheckpointError, match="give them with --bank"):
        convert(tmp_path / "bleep.pth", GENES)
    if rows == 60:
        path, _ = bank(tmp_path, genes=("g0", "X", "Y"))
        with pytest.raises(CheckpointError, match=r"a bank of another panel: it lacks 4 of the 5 genes \(g1, g2"):
            convert(tmp_path / "bleep.pth", GENES, bank=path)
    else:
        path, _ = bank(tmp_path, rows=rows)
        with pytest.raises(CheckpointError, match="a bank of 7 spots has no 50 nearest"):
            convert(tmp_path / "bleep.pth", GENES, bank=path)
    torch.save(random_state("vit"), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="a bank is for BLEEP"):
        convert(tmp_path / "vit.pth", GENES, bank=path)


def test_a_bank_of_another_panel_than_the_cards_is_refused(tmp_path):
    network, card = initialise(small("bleep"), GENES)
    save(tmp_path / "checkpoint", network, card)
    path = tmp_path / "checkpoint" / "model.json"
    path.write_text(path.read_text().replace('"g4"', '"h4"'))
    with pytest.raises(CheckpointError, match="the bank is not the one of this card and panel"):
        load(tmp_path / "checkpoint")
