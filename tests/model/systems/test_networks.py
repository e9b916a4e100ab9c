"""What the networks compute, beside others that compute the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from m2ost.architecture import IMAGENET, Normalisation
from m2ost.module import Normalise
from m2ost.symmetries import Symmetries
from m2ost.systems.hist2st import find_neighbours
from m2ost.systems.registry import build
from torch import nn

from tests.support.systems import N_GENES, SIZES, SPOT_LEVEL, small


def network(name, **changes):
    """With weights and running means that differ from those of a fresh one."""
    torch.manual_seed(0)
    made = build(small(name, **changes)).eval()
    with torch.no_grad():
        for key, value in made.state_dict().items():
            if value.is_floating_point() and not key.startswith("bank."):
                value.add_(torch.rand_like(value) * 0.1)
    return made


def views(rows, px, seed=0):
    """Noise about another colour in every row: fresh networks hardly tell noise from noise."""
    random = np.random.default_rng(seed)
    colour = random.integers(0, 128, (rows, 1, 1, 3))
    return torch.from_numpy((colour + random.integers(0, 128, (rows, px, px, 3))).astype(np.uint8))


def inputs(made, rows):
    """Views, and where the network takes them positions, a ring of neighbours and their shares."""
    first, *others = made.example(rows)
    given = [views(rows, first.shape[1])]
    if others:
        given.append(torch.from_numpy(np.random.default_rng(1).integers(0, 8, (rows, 2))))
    if len(others) > 1:
        ring = torch.arange(rows)[:, None] + torch.tensor([1, 2, 3, 4])
        given += [ring % rows, torch.full((rows, 4), 0.25)]
    return given


@pytest.mark.parametrize("name", SIZES)
def test_pixels_may_be_bytes_or_fractions(name):
    made = network(name, **({"bank_rows": 500} if name == "bleep" else {}))
    given = inputs(made, 6)
    with torch.inference_mode():
        found = made(*given)
        fractions = made(given[0].float() / 255, *given[1:])
    assert found.shape == (6, N_GENES)
    assert found.std(dim=0).min() > 0
    torch.testing.assert_close(fractions, found, rtol=0, atol=0)


@pytest.mark.parametrize("name", SPOT_LEVEL)
def test_a_spot_does_not_depend_on_the_others(name):
    made = network(name)
    spots = views(5, made.config.image_px)
    with torch.inference_mode():
        torch.testing.assert_close(made(spots[2:3])[0], made(spots)[2], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="takes 1 view, got 2"):
        made(spots, spots)


def test_normalisation_is_what_it_says():
    view = views(2, 4)
    pixels = view.numpy().astype(np.float64)
    mean, std = np.array(IMAGENET.mean), np.array(IMAGENET.std)
    expected = (pixels / 255 - mean) / std
    np.testing.assert_allclose(Normalise(IMAGENET)(view), expected.transpose(0, 3, 1, 2), atol=1e-5)
    blue_first = Normalise(replace(IMAGENET, channel_order="BGR"))(view)
    np.testing.assert_allclose(blue_first, ((pixels[..., ::-1] / 255 - mean) / std).transpose(0, 3, 1, 2), atol=1e-5)
    as_they_are = Normalise(Normalisation(scale=1, layout="x_major"))(view)
    np.testing.assert_allclose(as_they_are, pixels.transpose(0, 3, 2, 1), atol=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        {"scale": 2},
        {"mean": (0, 0)},
        {"std": (1, 0, 1)},
        {"channel_order": "GBR"},
        {"layout": "columns"},
    ],
)
def test_a_normalisation_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Normalisation(**values)


def test_vit_is_pytorchs_own_encoder():
    made = network("vit")
    layers = []
    for block in made.blocks:
        layer = nn.TransformerEncoderLayer(64, 1, 32, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
        names = {"self_attn.in_proj_weight": block.attn.qkv.weight, "self_attn.in_proj_bias": block.attn.qkv.bias}
        parts = {"self_attn.out_proj": block.attn.proj, "linear1": block.mlp.fc1, "linear2": block.mlp.fc2,
                 "norm1": block.norm1, "norm2": block.norm2}  # fmt: skip
        for name, part in parts.items():
            names |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
        layer.load_state_dict(names)
        layers.append(layer.eval())
    tokens = torch.randn(3, 17, 64)
    with torch.no_grad():
        torch.testing.assert_close(made.blocks(tokens), nn.Sequential(*layers)(tokens), rtol=1e-4, atol=1e-5)


def test_crossvits_branches_hear_of_each_other_through_their_cls_tokens():
    made = network("crossvit")
    stage = made.blocks[0]
    tokens = [torch.randn(1, 10, 32), torch.randn(1, 5, 64)]
    other = [tokens[0], torch.randn(1, 5, 64)]
    with torch.no_grad():
        a, b = stage(tokens), stage(other)
    assert not torch.equal(a[0][:, 0], b[0][:, 0])
    torch.testing.assert_close(a[0][:, 1:], b[0][:, 1:], rtol=0, atol=0)


def test_crossvit_predicts_the_mean_of_its_branches():
    made = network("crossvit")
    spots = views(2, 32)
    with torch.no_grad():
        both = made(spots)
        for b in (0, 1):
            made.head[b].bias.add_(2.0)
        torch.testing.assert_close(made(spots), both + 2)
        made.head[0].bias.add_(2.0)
        torch.testing.assert_close(made(spots), both + 3)


def test_bleep_finds_what_a_numpy_search_finds():
    made = network("bleep", bank_rows=500, neighbours=50)
    made.fill(torch.randn(500, N_GENES))
    spots = views(9, 64)
    with torch.inference_mode():
        found = made(spots)
        query = made.embed(made.pixels(spots)).numpy().astype(np.float64)
        bank = made.spot_projection(made.bank.expression).numpy().astype(np.float64)
    cosine = (query / np.linalg.norm(query, axis=1)[:, None]) @ (bank / np.linalg.norm(bank, axis=1)[:, None]).T
    nearest = np.argsort(-cosine, axis=1)[:, :50]
    assert len({tuple(sorted(rows)) for rows in nearest}) > 1
    expected = np.stack([made.bank.expression.numpy()[rows].mean(axis=0) for rows in nearest])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_bleeps_loss_by_hand_and_its_targets_pass_gradients():
    made = network("bleep")
    spots, expression = views(4, 64), torch.randn(4, N_GENES)
    loss = made.contrast(spots, expression)
    with torch.no_grad():
        i = made.embed(made.pixels(spots)).numpy().astype(np.float64)
        e = made.spot_projection(expression).numpy().astype(np.float64)

    def softmax(x, axis):
        return np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)

    targets = softmax((i @ i.T + e @ e.T) / 2, 1)
    spots_way = -(targets * np.log(softmax(e @ i.T, 1))).sum(axis=1)
    images_way = -(targets * np.log(softmax(e @ i.T, 0))).sum(axis=0)
    assert loss.item() == pytest.approx((spots_way + images_way).mean() / 2, rel=1e-4)
    loss.backward()
    assert made.spot_projection.fc.weight.grad.abs().max() > 0
    assert made.image_encoder.model.conv1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["histogene", "hist2st"])
def test_permuting_the_spots_of_a_slide_permutes_the_answer(name):
    made = network(name)
    given = inputs(made, 7)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    place = order.argsort()
    permuted = [given[0][order], given[1][order]]
    if len(given) > 2:
        permuted += [place[given[2][order]], given[3][order]]
    with torch.inference_mode():
        expected, found = made(*given), made(*permuted)
    torch.testing.assert_close(found, expected[order], rtol=1e-4, atol=1e-5)
    moved = [given[0], (given[1] + 1) % 8, *given[2:]]
    with torch.inference_mode():
        assert not torch.allclose(made(*moved), expected)


def test_an_isolated_spot_is_a_number():
    made = network("hist2st")
    given = inputs(made, 3)
    given[3] = torch.zeros(3, 4)
    with torch.inference_mode():
        assert torch.isfinite(made(*given)).all()
        alone = [given[0][:1], given[1][:1], torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4)]
        assert torch.isfinite(made(*alone)).all()


def test_hist2st_averages_its_neighbours_and_leaves_the_spot_itself_out():
    layer = network("hist2st").vit.transformer.layer3[0]
    spots = torch.randn(5, 16)
    neighbours, shares = torch.tensor([[1, 2, 0, 0]] * 5), torch.tensor([[0.5, 0.5, 0, 0]] * 5)
    with torch.no_grad():
        found = layer(spots, neighbours, shares)
        expected = torch.relu((spots[1] + spots[2]) / 2 @ layer.weight.T)
    torch.testing.assert_close(found, (expected / expected.norm()).expand(5, -1))


@pytest.mark.parametrize("name", ["histogene", "hist2st"])
def test_the_two_stages_of_a_slide_level_network_are_the_network(name):
    made, given = network(name), inputs(network(name), 7)
    if name == "hist2st":
        given[2:] = find_neighbours(given[1], 8)
    with torch.inference_mode():
        features = torch.cat([made.patches(given[0][rows]) for rows in (slice(0, 3), slice(3, 7))])
        torch.testing.assert_close(made.slide(features, given[1].int()), made(*given), rtol=1e-4, atol=1e-5)
    assert features.shape == (7, made.dim)


def test_neighbours_are_the_nearest_four_within_two_places_in_any_order_of_the_spots():
    places = np.stack(np.unravel_index(np.random.default_rng(0).choice(64, 25, replace=False), (8, 8)), axis=1)
    places = np.concatenate([places[~((places > 4).all(axis=1))], [(7, 7)]])  # the last one is alone
    rows, shares = find_neighbours(torch.from_numpy(places).int(), 8)
    for spot, place in enumerate(places):
        steps = places - place
        squared = (steps**2).sum(axis=1)
        near = sorted((squared[row], *steps[row], row) for row in np.flatnonzero((squared > 0) & (squared <= 4)))
        expected = [row for *_, row in near[:4]]
        assert rows[spot][shares[spot] > 0].tolist() == expected
        found = shares[spot].numpy()
        np.testing.assert_allclose(found, [1 / max(len(expected), 1)] * len(expected) + [0] * (4 - len(expected)))
    assert not shares[-1].any()
    assert (shares > 0).sum(dim=1).max() == 4, "no spot has more neighbours than count"
    order = np.random.default_rng(1).permutation(len(places))
    permuted, _ = find_neighbours(torch.from_numpy(places[order]).int(), 8)
    alike = (torch.from_numpy(order)[permuted] == rows[order]) | (shares[order] == 0)
    assert alike.all()


@pytest.mark.parametrize("name", ["stnet", "crossvit"])
def test_the_mean_over_the_symmetries_does_not_know_how_a_spot_lies(name):
    made = network(name)
    spots = views(3, made.config.image_px)
    whole = Symmetries(made).eval()
    with torch.inference_mode():
        turns = [torch.rot90(side, k, (1, 2)) for side in (spots, spots.flip(2)) for k in range(4)]
        each = torch.stack([made(turned) for turned in turns])
        found = whole(spots)
        torch.testing.assert_close(found, each.mean(dim=0), rtol=1e-4, atol=1e-5)
        assert each.std(dim=0).max() > 1e-3
        torch.testing.assert_close(whole(turns[5]), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("stnet", {"growth": 0}, "growth"),
        ("stnet", {"layers": (1, 0)}, "layers"),
        ("vit", {"dim": 65}, "multiple of 64"),
        ("vit", {"image_px": 30}, "multiple of patch_px"),
        ("crossvit", {"dims": (32,)}, "two integers"),
        ("crossvit", {"heads": 5}, "multiple of the 5 heads"),
        ("crossvit", {"branch_px": (32, 30)}, "multiple of patch_px"),
        ("deepspace", {"image_px": 40}, "halved 5 times"),
        ("deepspace", {"widths": (4, 4)}, "5 integers"),
        ("bleep", {"neighbours": 9}, "a bank of 7 spots has no 9"),
        ("hist2st", {"image_px": 16}, "multiple of 7"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(name, sizes, words):
    with pytest.raises(ValueError, match=words):
        small(name, **sizes)
