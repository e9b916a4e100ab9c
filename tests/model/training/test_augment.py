"""One transform a spot, the same for all of its views."""

from itertools import pairwise

import numpy as np
import torch
from m2ost.training.augment import AugmentConfig, augment, turn, vary_stain
from m2ost.training.schedule import warmup_cosine


def spots(n=8, views=3, size=16):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, views, size, size, 3), np.uint8))


def test_turns_and_flips_are_those_of_numpy():
    views = spots()
    turns, flips = torch.arange(8) % 4, torch.arange(8) // 4
    turned = turn(views, turns, flips).numpy()
    for i in range(8):
        for view in range(3):
            expected = np.rot90(views[i, view].numpy(), int(turns[i]), (0, 1))
            np.testing.assert_array_equal(turned[i, view], expected[:, ::-1] if flips[i] else expected)


def test_the_views_of_a_spot_are_varied_alike():
    one = spots(n=6, views=1)
    views = one.expand(-1, 3, -1, -1, -1).contiguous()
    varied = augment(views, AugmentConfig(stain=0.3, brightness=0.1), torch.Generator().manual_seed(1))
    assert torch.equal(varied[:, 0], varied[:, 1])
    assert torch.equal(varied[:, 0], varied[:, 2])
    assert not torch.allclose(varied[:, 0], one[:, 0] / 255, atol=0.02)


def test_spots_are_varied_apart_and_draws_repeat():
    views = spots(n=1).expand(12, -1, -1, -1, -1).contiguous()
    config = AugmentConfig()
    first = augment(views, config, torch.Generator().manual_seed(1))
    assert len({tuple(v.flatten()[:64].tolist()) for v in first}) == 12
    assert torch.equal(first, augment(views, config, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, augment(views, config, torch.Generator().manual_seed(2)))


def test_a_factor_of_one_changes_nothing():
    views = spots().clamp(min=1)
    same = vary_stain(views, torch.ones(8, 3), torch.zeros(8))
    torch.testing.assert_close(same, views / 255, atol=1e-4, rtol=0)


def test_more_density_is_darker():
    views = spots()
    assert vary_stain(views, torch.ones(8, 3), torch.full((8,), 0.5)).mean() < views.float().mean() / 255 * 0.7


def test_no_augmentation_is_none():
    views = spots()
    off = AugmentConfig(dihedral=False, stain=0, brightness=0)
    assert torch.equal(augment(views, off, torch.Generator()), views / 255)


def test_warm_up_rises_to_one_and_the_cosine_falls_to_the_floor():
    rates = [warmup_cosine(step, warmup_steps=10, total_steps=110, floor=0.1) for step in range(111)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == rates[10] == 1
    assert rates[60] == 0.55
    assert rates[110] == 0.1
    assert all(a >= b for a, b in pairwise(rates[10:]))
