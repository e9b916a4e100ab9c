"""The work on a slide, counted against the arithmetic of the description."""

import numpy as np
import pytest
from m2ost_istar.geometry import VARIANTS, Variant, patch_origin, plan
from m2ost_istar.sizes import Sizes

pytestmark = pytest.mark.usefixtures("heavy")

HER2ST = (9274, 9911)
HER2ST_MPP = 0.688


def test_a_her2st_section_takes_what_the_description_says():
    stock, one = (plan(HER2ST, HER2ST_MPP, VARIANTS[name]) for name in ("stock", "no_shift"))
    assert stock.padded_px == one.padded_px == (12_800, 13_824)
    assert (stock.passes, stock.tiles, stock.forwards) == (16, 256, 65_536)
    assert (one.passes, one.tiles, one.forwards) == (1, 16, 4_096)
    assert stock.region_grid == one.region_grid == (64, 64)
    assert stock.superpixels == one.superpixels == 864 * 800
    tera = {name: round(flop / 1e12, 1) for name, flop in stock.flop.items()}
    assert tera == {"patch": 804.9, "region": 1.6, "head": 2.8}
    assert one.flop["patch"] * 16 == stock.flop["patch"]
    assert stock.total_flop == sum(stock.flop.values())


def test_a_patch_costs_what_the_description_says():
    sizes = Sizes()
    assert sizes.patch_flop == pytest.approx(12.28e9, rel=0.01)
    assert sizes.feature_dim == 579
    # From first principles: 257 tokens, 12 blocks of four projections' worth of attention and eight of feed-forward.
    block = 2 * 257 * 384 * 384 * (4 + 8) + 2 * 2 * 257 * 257 * 384
    assert sizes.patch_flop == 12 * block + 2 * 256 * 768 * 384
    assert sizes.head_flop == 5 * 2 * (579 * 256 + 3 * 256 * 256 + 256 * 250)


def test_every_patch_of_every_tile_comes_once_tile_by_tile():
    work = plan((5000, 3000), 0.5, VARIANTS["stock"])
    assert work.pass_px == (4864, 2816)
    assert work.region_grid == (16, 32)
    assert len({tuple(p) for p in work.positions.tolist()}) == work.forwards == 16 * 512
    first_tile = work.positions[:256]
    assert first_tile[:, 1:].min() == 0
    assert first_tile[:, 1:].max() == 15
    assert patch_origin(work, (5, 2, 3)) == (2 * 16 + 4, 3 * 16 + 4)


def test_patches_with_tissue_are_those_that_hold_a_pixel_of_it():
    random = np.random.default_rng(0)
    mask = np.zeros((300, 500), bool)
    for y, x in random.integers(0, (290, 490), (12, 2)):
        mask[y : y + 6, x : x + 6] = True
    work = plan((5000, 3000), 0.5, VARIANTS["tissue"], mask)
    expected = {(y * 10 // 256, x * 10 // 256) for y, x in np.argwhere(mask)}
    found = {tuple(p) for p in work.positions[1:, 1:].tolist()}
    # The overview's pixels are ten of the slide's: one that lies across two patches may count for both.
    across = {((y * 10 + 9) // 256, (x * 10 + 9) // 256) for y, x in np.argwhere(mask)}
    assert found <= expected | across | {(a, d) for a, _ in expected for _, d in across}
    assert len(expected - found) <= len(across - expected) + 2
    assert work.forwards == len(found) + 1
    assert work.superpixels == 256 * len(found)
    assert (work.tiles, work.passes, work.region_grid) == (0, 1, (12, 20))


def test_a_slide_without_tissue_takes_one_white_patch():
    work = plan((5000, 3000), 0.5, VARIANTS["tissue"], np.zeros((60, 100), bool))
    assert (work.forwards, work.superpixels) == (1, 0)


def test_memory_is_that_of_the_arrays_that_are_kept():
    work = plan(HER2ST, HER2ST_MPP, VARIANTS["stock"])
    tokens, colours, region, cls = 864 * 800 * 384, 864 * 800 * 3, 216 * 200 * 192, 16 * 64 * 64 * 384
    assert work.feature_bytes == 4 * (tokens + colours + region + cls)
    assert work.slide_bytes == 3 * 12_800 * 13_824
    assert plan(HER2ST, HER2ST_MPP, VARIANTS["no_shift"]).slide_bytes == 0
    assert work.region_bytes == 2 * 4 * 6 * 4097**2


@pytest.mark.parametrize(
    ("size", "mpp", "variant", "words"),
    [
        ((200, 5000), 0.5, "stock", "no_shift"),
        ((200, 5000), 0.5, "tissue", "tissue mask"),
        ((200, 5000), 0.0, "no_shift", "µm/px"),
        ((200, 5000), float("nan"), "no_shift", "µm/px"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_words(size, mpp, variant, words):
    with pytest.raises(ValueError, match=words):
        plan(size, mpp, VARIANTS[variant])


@pytest.mark.parametrize("sizes", [{"patch_dim": 25}, {"members": 4}, {"head_layers": 0}, {"n_genes": -1}])
def test_impossible_sizes_are_refused_by_name(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        Sizes(**sizes)


def test_sizes_survive_json_and_unknown_ones_are_refused():
    assert Sizes.from_dict(Sizes(n_genes=3).to_dict()) == Sizes(n_genes=3)
    with pytest.raises(ValueError, match="width"):
        Sizes.from_dict({"width": 3})


def test_the_variants_are_the_three_that_are_compared():
    assert set(VARIANTS) == {"stock", "no_shift", "tissue"}
    assert VARIANTS["stock"].shifts == tuple((y, x) for y in (0, 64, 128, 192) for x in (0, 64, 128, 192))
    assert VARIANTS["no_shift"] == Variant("no_shift")
