"""iStar's head, and where its weights come from."""

import torch
from m2ost_istar.networks.istar import Head, build
from m2ost_istar.sizes import Sizes

from ..narrow import NARROW


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
