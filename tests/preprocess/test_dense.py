"""Dense grids, and regions of slides."""

import numpy as np
import pytest
from m2ost_preprocess.errors import SpotError
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides.dense_grid import BLOCK_CELLS, NOT_ASKED, DenseGrid, parse_pitch
from m2ost_preprocess.slides.rectangle import Rectangle
from m2ost_preprocess.slides.spots import grid
from m2ost_preprocess.slides.tissue import MASK_PX, tissue_mask


def by_position(blocks):
    return {tuple(center) for block in blocks for center in block.centers.tolist()}


@pytest.mark.parametrize("pitch_px", [16, 33])
def test_blocks_hold_the_spots_of_a_grid_of_that_pitch(svs, pitch_px):
    reader = open_slide(svs)
    mask = tissue_mask(reader.thumbnail(MASK_PX))
    spots = grid(reader.size, mask, pitch_px)
    dense = DenseGrid.over(reader.size, pitch_px)
    blocks = list(dense.blocks(mask))
    assert len(blocks) == dense.n_blocks > 1
    assert sum(len(block.centers) for block in blocks) == len(spots)
    assert by_position(blocks) == {tuple(center) for center in np.floor(spots.centers).astype(int).tolist()}
    for block in blocks:
        x, y = dense.axis_px(1)[block.area[1]], dense.axis_px(0)[block.area[0]]
        assert (block.centers == np.stack([x[block.cells[:, 1]], y[block.cells[:, 0]]], axis=1)).all()
        assert ((block.empty_status() == NOT_ASKED) == ~block.tissue).all()


def test_a_map_of_a_region_is_that_part_of_the_slides_map():
    mask = np.random.default_rng(0).random((150, 110)) < 0.6
    size, region = (1100, 1500), Rectangle(210, 305, 400, 5000)
    whole = by_position(DenseGrid.over(size, 5).blocks(mask))
    dense = DenseGrid.over(size, 5, region)
    inside = by_position(dense.blocks(mask))
    assert dense.shape == (239, 80)
    assert dense.origin_px == (210, 305)
    assert inside == {(x, y) for x, y in whole if 210 <= x < 610 and 305 <= y < 1500}
    everywhere = by_position(dense.blocks(mask, everywhere=True))
    assert len(everywhere) == 239 * 80 > len(inside)


def test_a_blank_slide_has_blocks_without_positions():
    blocks = list(DenseGrid.over((3000, 2000), 16).blocks(np.zeros((100, 150), bool)))
    assert len(blocks) == -(-188 // BLOCK_CELLS) * -(-125 // BLOCK_CELLS)
    assert not any(len(block.centers) for block in blocks)


@pytest.mark.parametrize("text", ["15", "", "0px", "-16px", "16 um", "1.5px", "px", "99999px"])
def test_a_pitch_is_whole_pixels_with_their_unit(text):
    with pytest.raises(SpotError, match="such as 16px"):
        parse_pitch(text)
    assert parse_pitch("15px") == 15


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3", "write X,Y,W,H"),
        ("a,0,5,5", "write X,Y,W,H"),
        ("-1,0,5,5", "write X,Y,W,H"),
        ("0,0,0,5", "empty"),
        ("1000,0,5,5", "outside the slide, which has 1000×800 pixels"),
        ("0,800,5,5", "outside the slide"),
        ("1,1,3,3", "holds no position of a grid of 16 px"),
    ],
)
def test_regions_that_cannot_be(text, words):
    with pytest.raises(SpotError, match=words):
        DenseGrid.over((1000, 800), 16, Rectangle.parse(text))


def test_a_region_is_cut_off_at_the_slides_edge():
    assert Rectangle.parse("900, 700, 500, 500").within((1000, 800)) == Rectangle(900, 700, 100, 100)
    held = Rectangle(10, 20, 5, 5).holds([[10, 20], [14.9, 24.9], [15, 20], [9.9, 20], [12, 25]])
    assert held.tolist() == [True, True, False, False, False]
