"""The network against the paper's figures and against pieces computed by hand."""

import math

import pytest
import torch
from m2ost.complexity import count, joint_attention
from m2ost.config import M2OSTConfig
from m2ost.network import (
    M2OST,
    CrossLevelChannelMixing,
    CrossLevelTokenMixing,
    DeformablePatchEmbedding,
    IntraLevelTokenMixing,
)
from torch.nn.functional import gelu, layer_norm

SMALL = M2OSTConfig(n_genes=5, dim=12, depth=1, heads=2, head_dim=4, ffn_dim=8, channel_dim=10)


def seeded(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def views_of(config, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.image_px, config.image_px, 3)
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(config.n_levels)]


def test_the_papers_model_has_the_papers_size():
    found = count(M2OSTConfig())
    assert found.parameters == 7_043_466
    assert found.flop == pytest.approx(8.617e9, rel=1e-4)
    assert count(M2OSTConfig(depth=6)).parameters == pytest.approx(10.03e6, rel=1e-3)
    # thop's count: no position tables, no cls, no unused norms
    tables = (197 + 393 + 589) * 192
    assert found.parameters - tables - 192 - 4 * 2 * 576 == pytest.approx(6.81e6, rel=1e-3)


def test_operations_are_counted_from_first_principles():
    lengths, d = (197, 393, 589), 192
    tokens = sum(lengths)
    attention = 4 * (4 * sum(n * n for n in lengths) * d + 2 * tokens * 4 * d * d)
    cross = 4 * (4 * (tokens**2 - sum(n * n for n in lengths)) * d + 2 * tokens * 5 * d * d)
    joint = 4 * (4 * tokens**2 * d + 2 * tokens * 4 * d * d)
    embedding = 2 * 196 * (3 * (768 + 192) * 576 + 2 * (192 + 192) * 288 + (48 + 192) * 144)
    feed_forward, channel, head = 2 * tokens * 2 * d * 128, 2 * 2 * 576 * 384, 2 * 576 * 250
    rest = embedding + 4 * (feed_forward + channel) + head
    assert count(M2OSTConfig()).flop == rest + attention + cross
    assert joint_attention(M2OSTConfig()).flop == rest + joint


def test_token_counts_and_the_place_of_every_patch():
    config = M2OSTConfig(dim=12, depth=1)
    embedding = seeded(DeformablePatchEmbedding(config))
    sequences = embedding([torch.zeros(1, 224, 224, 3)] * 3)
    assert [s.shape[1] for s in sequences] == [197, 393, 589]
    view = torch.arange(224 * 224 * 3, dtype=torch.float32).reshape(1, 224, 224, 3)
    for j, (start, patch) in enumerate([(0, 16), (56, 8), (84, 4)]):
        patches = embedding.patches(view, j)
        assert patches.shape == (1, 196, 3 * patch * patch)
        row, column = 3, 11  # the token of the fourth row, twelfth column
        y, x = start + row * patch, start + column * patch
        expected = view[0, y : y + patch, x : x + patch].reshape(-1)
        assert torch.equal(patches[0, row * 14 + column], expected)


def test_a_sequence_is_cls_then_fine_before_coarse_plus_positions():
    embedding = seeded(DeformablePatchEmbedding(SMALL))
    views = [v.float() / 255 for v in views_of(SMALL)]
    level = embedding(views)[2]
    parts = [embedding.embeddings[j](embedding.patches(views[2], j)) for j in (2, 1, 0)]
    expected = torch.cat([embedding.cls_token.expand(2, -1, -1), *parts], dim=1) + embedding.positions[2]
    torch.testing.assert_close(level, expected)


def attention(q, k, v, heads):
    """softmax(QKᵀ/√d)V head by head, written out."""
    width = q.shape[-1] // heads
    parts = []
    for h in range(heads):
        columns = slice(h * width, (h + 1) * width)
        scores = q[..., columns] @ k[..., columns].transpose(-1, -2) / math.sqrt(width)
        parts.append(scores.softmax(-1) @ v[..., columns])
    return torch.cat(parts, dim=-1)


def sequences_of(config, batch=2):
    torch.manual_seed(1)
    return [torch.randn(batch, n, config.dim) for n in (5, 7, 9)]


def test_intra_level_token_mixing_by_hand():
    module, inputs = seeded(IntraLevelTokenMixing(SMALL)), sequences_of(SMALL)
    norm, first, _, second, _ = module.feed_forward
    for level, found in enumerate(module(inputs)):
        x = inputs[level]
        q, k, v = (x @ module.qkv[level].weight.T).split(8, dim=-1)
        x = x + attention(q, k, v, 2) @ module.out[level].weight.T + module.out[level].bias
        hidden = gelu(layer_norm(x, (12,), norm.weight, norm.bias) @ first.weight.T + first.bias)
        x = x + gelu(hidden @ second.weight.T + second.bias)
        torch.testing.assert_close(found, x)


def test_cross_level_token_mixing_by_hand_has_no_residual():
    module, inputs = seeded(CrossLevelTokenMixing(SMALL)), sequences_of(SMALL)
    normed = [layer_norm(x, (12,), module.norm.weight, module.norm.bias) for x in inputs]
    q, k, v = ([x @ m.weight.T for x, m in zip(normed, ms, strict=True)] for ms in (module.q, module.k, module.v))
    for level, (first, second) in enumerate([(1, 2), (0, 2), (0, 1)]):
        both = [attention(q[level], k[j], v[j], 2) for j in (first, second)]
        expected = torch.cat(both, dim=-1) @ module.out[level].weight.T + module.out[level].bias
        torch.testing.assert_close(module(inputs)[level], expected)


def test_cross_level_channel_mixing_by_hand():
    module, inputs = seeded(CrossLevelChannelMixing(SMALL)), sequences_of(SMALL)
    norm, first, _, second, _ = module.excite
    z = torch.cat([x.mean(dim=1) for x in inputs], dim=-1)
    hidden = gelu(layer_norm(z, (36,), norm.weight, norm.bias) @ first.weight.T + first.bias)
    a = torch.sigmoid(hidden @ second.weight.T + second.bias)
    for level, found in enumerate(module(inputs)):
        weight = a[:, None, level * 12 : (level + 1) * 12]
        torch.testing.assert_close(found, inputs[level] * weight + inputs[level])


def test_the_head_reads_the_three_cls_outputs():
    model = seeded(M2OST(SMALL))
    sequences = model.blocks[0](model.embed([v.float() / 255 for v in views_of(SMALL)]))
    features = torch.cat([model.norm(x)[:, 0] for x in sequences], dim=-1)
    torch.testing.assert_close(model(*views_of(SMALL)), features @ model.head.weight.T + model.head.bias)


def test_uint8_views_are_scaled_inside():
    model, views = seeded(M2OST(SMALL)), views_of(SMALL)
    torch.testing.assert_close(model(*views), model(*(v.float() / 255 for v in views)), rtol=0, atol=0)


def test_random_masking_acts_in_training_only():
    config = M2OSTConfig(**{**SMALL.to_dict(), "mask_ratio": 0.5})
    plain, masked = seeded(M2OST(SMALL)), seeded(M2OST(config))
    views = views_of(SMALL)
    assert torch.equal(plain(*views), masked(*views))
    masked.train()
    first, second = masked(*views), masked(*views)
    assert not torch.equal(first, second)
    assert torch.isfinite(first).all()
    plain.train()
    assert torch.equal(plain(*views), plain(*views))


def test_a_mask_hides_its_share_but_never_a_token_from_itself():
    config = M2OSTConfig(**{**SMALL.to_dict(), "mask_ratio": 0.9})
    torch.manual_seed(0)
    mask = IntraLevelTokenMixing(config).train()._mask(torch.zeros(8, 50, 12))[:, 0]
    diagonal = torch.eye(50, dtype=torch.bool).expand(8, -1, -1)
    assert mask[diagonal].all()
    assert mask[~diagonal].float().mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    "sizes", [{"image_px": 256}, {"n_levels": 2}, {"n_levels": 1}, {"n_levels": 4, "image_px": 128}, {"depth": 2}]
)
def test_other_sizes_train(sizes):
    config = M2OSTConfig(**{**SMALL.to_dict(), **sizes})
    torch.manual_seed(0)
    model = M2OST(config)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    views, target = views_of(config, batch=4), torch.randn(4, 5)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = torch.nn.functional.mse_loss(model(*views), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    untouched = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not untouched


@pytest.mark.parametrize(
    "sizes", [{"depth": 0}, {"n_genes": -1}, {"mask_ratio": 1.0}, {"image_px": 225}, {"n_levels": 6}]
)
def test_impossible_sizes_are_refused_by_name(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        M2OSTConfig(**sizes)


def test_a_wrong_number_of_views_is_refused():
    with pytest.raises(ValueError, match="takes 3 views, got 2"):
        M2OST(SMALL)(*views_of(SMALL)[:2])


def test_an_unknown_field_of_the_architecture_is_refused():
    with pytest.raises(ValueError, match="width"):
        M2OSTConfig.from_dict({"width": 3})
