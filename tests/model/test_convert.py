"""Checkpoints of the authors' code become ours, and nothing in them is ever run."""

import os

import pytest
import torch
from m2ost.authors import key_map
from m2ost.convert import convert
from m2ost.weights import CheckpointError

GENES = tuple(f"g{i}" for i in range(7))


def official_shapes(depth=2, d=192, g=7, mlp=384):
    """Key names and shapes as the published code saves them, written out from its description."""
    shapes = {"cls_token": (1, 1, d), "mlp_head.weight": (g, 3 * d), "mlp_head.bias": (g,)}
    shapes |= {f"transformer.norm.{leaf}": (d,) for leaf in ("weight", "bias")}
    for n, (patch, hidden) in enumerate([(768, 3 * d), (192, 3 * d // 2), (48, 3 * d // 4)], start=1):
        shapes[f"pos_embedding{n}"] = (1, 196 * n + 1, d)
        for index, shape in {1: (patch,), 2: (hidden, patch), 4: (d, hidden), 5: (d,)}.items():
            shapes[f"to_patch_embedding{n}.{index}.weight"] = shape
            shapes[f"to_patch_embedding{n}.{index}.bias"] = shape[:1]
    for n in range(depth):
        block = f"transformer.layers.{n}"
        linear = {
            "0.to_out1.0": (d, d), "0.to_out2.0": (d, d), "0.to_out3.0": (d, d),
            "1.split_mlp.1": (mlp // 3, d), "1.split_mlp.4": (d, mlp // 3),
            "2.to_out0.0": (d, 2 * d), "2.to_out1.0": (d, 2 * d), "2.to_out2.0": (d, 2 * d),
            "3.net.1": (mlp, 3 * d), "3.net.4": (3 * d, mlp),
        }  # fmt: skip
        norms = {"0.norm": 3 * d, "1.split_mlp.0": d, "2.norm": d, "3.net.0": 3 * d}
        for name, shape in {**linear, **{k: (v,) for k, v in norms.items()}}.items():
            shapes[f"{block}.{name}.weight"] = shape
            shapes[f"{block}.{name}.bias"] = shape[:1]
        for level in (1, 2, 3):
            shapes[f"{block}.0.to_qkv{level}.weight"] = (3 * d, d)
        for letter in "qkv":
            for level in (0, 1, 2):
                shapes[f"{block}.2.to_{letter}{level}.weight"] = (d, d)
    return shapes


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {f"module.{key}": torch.randn(shape) * 0.02 for key, shape in official_shapes().items()}


def saved(state, tmp_path):
    path = tmp_path / "authors.pth"
    torch.save(state, path)
    return path


def test_the_key_names_are_the_authors(state):
    assert set(key_map(2)) == set(official_shapes())


def test_configuration_is_read_off_the_shapes_and_every_tensor_lands(state, tmp_path):
    model, card = convert(saved(state, tmp_path), GENES, mpp=0.7)
    config = card.architecture
    assert (config.depth, config.dim, config.heads, config.head_dim) == (2, 192, 3, 64)
    assert (config.ffn_dim, config.channel_dim, config.image_px, config.n_genes) == (128, 384, 224, 7)
    assert (card.genes, card.trained, card.mpp) == (GENES, True, 0.7)
    ours = model.state_dict()
    for theirs, name in key_map(2).items():
        assert torch.equal(ours[name], state[f"module.{theirs}"])
    assert torch.equal(ours["blocks.1.cross.q.2.weight"], state["module.transformer.layers.1.2.to_q2.weight"])
    assert torch.equal(ours["blocks.0.intra.qkv.0.weight"], state["module.transformer.layers.0.0.to_qkv1.weight"])
    assert torch.equal(ours["embed.embeddings.2.3.weight"], state["module.to_patch_embedding3.4.weight"])


def test_the_prefix_is_optional_and_half_precision_is_widened(state, tmp_path):
    plain = {key.removeprefix("module."): value.half() for key, value in state.items()}
    model, _ = convert(saved(plain, tmp_path), GENES)
    assert model.head.weight.dtype == torch.float32


def test_missing_and_unexpected_keys_are_each_named(state, tmp_path):
    del state["module.transformer.norm.bias"]
    state["module.extra"] = torch.zeros(1)
    state["module.transformer.layers.1.9.weird"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        convert(saved(state, tmp_path), GENES)
    for words in ("missing transformer.norm.bias", "unexpected extra", "unexpected transformer.layers.1.9.weird"):
        assert words in str(error.value)


def test_a_wrong_shape_is_named(state, tmp_path):
    state["module.transformer.layers.1.3.net.4.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.channel\.excite\.3\.bias has shape \(5,\)"):
        convert(saved(state, tmp_path), GENES)


def test_a_gene_list_of_the_wrong_length_is_refused(state, tmp_path):
    with pytest.raises(CheckpointError, match="predicts 7 genes but the panel lists 2"):
        convert(saved(state, tmp_path), GENES[:2])


class Malicious:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_unrun(tmp_path, legacy):
    canary, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"module.cls_token": Malicious(canary)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="never run"):
        convert(path, GENES)
    assert not canary.exists()


@pytest.mark.parametrize("content", [{"a": 1}, [torch.zeros(1)], {}, {"a": torch.zeros(2)}])
def test_files_that_are_no_state_dict_of_theirs(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"authors\.pth"):
        convert(saved(content, tmp_path), GENES)


def test_files_that_are_no_checkpoint_at_all(tmp_path):
    path = tmp_path / "authors.pth"
    with pytest.raises(CheckpointError, match="no such file"):
        convert(path, GENES)
    for data in (b"", b"hello", b"PK\x03\x04broken"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="refused"):
            convert(path, GENES)
