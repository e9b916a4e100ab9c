"""Tissue and spot grids."""

import numpy as np
import pytest
from m2ost_preprocess.errors import SpotError
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides.spots import grid, median_pitch_px, read_spots
from m2ost_preprocess.slides.tissue import tissue_mask


def test_tissue_of_a_real_slide_is_where_the_stain_is(svs):
    overview = open_slide(svs).thumbnail(1024)
    mask = tissue_mask(overview)
    assert mask.shape == overview.shape[:2]
    assert 0.2 < mask.mean() < 0.5
    assert overview[mask].mean() < 190
    assert overview[~mask].mean() > 225


def test_real_spots_lie_on_the_mask(section, selection):
    reader = open_slide(section)
    mask = tissue_mask(reader.thumbnail(1024))
    scale = mask.shape[1] / reader.size[0]
    centers = (read_spots(selection).centers * scale).astype(int)
    # The annotators chose these spots as lying under tissue.
    assert mask[centers[:, 1], centers[:, 0]].mean() > 0.8


@pytest.mark.parametrize("colour", [(255, 255, 255), (240, 240, 242), (0, 0, 0)])
def test_a_blank_slide_has_no_tissue(colour):
    random = np.random.default_rng(0)
    blank = np.clip(np.array(colour) + random.integers(-2, 3, (300, 400, 1)), 0, 255).astype(np.uint8)
    assert not tissue_mask(np.broadcast_to(blank, (300, 400, 3)).copy()).any()
    assert len(grid((4000, 3000), tissue_mask(np.full((300, 400, 3), colour, np.uint8)), 100)) == 0


def test_a_full_mask_gives_a_full_grid_row_by_row():
    spots = grid((1000, 500), np.ones((50, 100), bool), 100)
    assert len(spots) == 50
    assert spots.centers[:3].tolist() == [[50, 50], [150, 50], [250, 50]]
    assert spots.names[:2] == ("0x0", "1x0")
    assert spots.names[-1] == "9x4"
    assert spots.pitch_px == 100


def test_a_grid_keeps_the_cells_that_are_half_tissue():
    mask = np.zeros((100, 100), bool)
    mask[:, :34] = True
    spots = grid((1000, 1000), mask, 200)
    # columns of 20 mask pixels: the first is full, the second has 14 of 20, the third none
    assert {name.split("x")[0] for name in spots.names} == {"0", "1"}


def test_a_pitch_that_does_not_divide_the_slide_leaves_no_centre_outside():
    spots = grid((1010, 707), np.ones((70, 101), bool), 99.7)
    assert (spots.centers < (1010, 707)).all()
    assert (spots.centers >= 0).all()


def test_cells_smaller_than_a_mask_pixel():
    spots = grid((1000, 1000), np.ones((10, 10), bool), 16)
    assert len(spots) == 62 * 62  # the centres of the 63rd row and column lie on the border, outside
    assert median_pitch_px(spots.centers) == pytest.approx(16)


@pytest.mark.parametrize("pitch", [0, -5, float("nan"), float("inf"), 0.01])
def test_an_impossible_pitch_is_refused(pitch):
    with pytest.raises(SpotError, match="pitch"):
        grid((9000, 9000), np.ones((10, 10), bool), pitch)
