"""The slide at 0.5 µm/px, and the superpixels of its spots."""

import numpy as np
import pytest
from m2ost_contract import RowStatus
from m2ost_istar.disks import MAX_PAIRS, disks
from m2ost_istar.geometry import VARIANTS, plan
from m2ost_istar.scaled import ScaledSlide
from m2ost_istar.stopwatch import Stopwatch
from m2ost_preprocess.errors import SpotError
from skimage.transform import resize

from ..slides import ArraySlide

pytestmark = pytest.mark.usefixtures("heavy")


def scaled(pixels, mpp):
    work = plan((pixels.shape[1], pixels.shape[0]), mpp, VARIANTS["no_shift"])
    return ScaledSlide(ArraySlide(pixels), work, Stopwatch()), work


@pytest.mark.parametrize("mpp", [0.688, 0.499, 0.25])
def test_rescaling_is_linear_interpolation(tissue_pixels, mpp):
    slide, work = scaled(tissue_pixels, mpp)
    (width, height), whole = work.scaled_px, slide.read(0, 0, *work.padded_px)
    # scikit-image interpolates in float64, so that a value on the edge between two levels may fall to the other.
    shape = (height, width, 3)
    expected = resize(tissue_pixels, shape, order=1, mode="edge", anti_aliasing=False, preserve_range=True)
    assert np.abs(whole[:height, :width] - expected).max() <= 0.5 + 1e-3
    assert (whole[height:] == 255).all()
    assert (whole[:, width:] == 255).all()


def test_at_half_a_micrometre_a_pixel_stays_as_it_is(tissue_pixels):
    slide, work = scaled(tissue_pixels, 0.5)
    whole = slide.read(0, 0, *work.padded_px)
    np.testing.assert_array_equal(whole[:1300, :1000], tissue_pixels)


def test_strips_and_rectangles_are_those_of_the_whole(tissue_pixels):
    slide, work = scaled(tissue_pixels, 0.688)
    whole = slide.read(0, 0, *work.padded_px)
    for left, top, width, height in [(0, 0, 256, 256), (1000, 1500, 400, 292), (1377, 1789, 10, 3), (512, 256, 1, 1)]:
        np.testing.assert_array_equal(
            slide.read(left, top, width, height), whole[top : top + height, left : left + width]
        )
    slide.hold()
    np.testing.assert_array_equal(slide.read(0, 0, *work.padded_px), whole)


def test_the_slide_is_read_in_bounded_strips():
    source = ArraySlide(np.full((1200, 9000, 3), 200, np.uint8))
    work = plan(source.size, 0.4, VARIANTS["stock"])
    ScaledSlide(source, work, Stopwatch()).hold()
    assert max(width * height for *_, width, height in source.reads) <= (4096 / 0.8 + 2) * (256 / 0.8 + 2)


@pytest.mark.parametrize("diameter_um", [100, 55, 20])
def test_a_spot_is_made_of_the_superpixels_whose_centre_is_in_its_disk(diameter_um):
    size, mpp = (2220, 2967), 0.499
    grid = plan(size, mpp, VARIANTS["no_shift"]).superpixel_grid
    centers = np.array([[800, 900], [0, 0], [2219, 2966], [1107, 5], [-1, 4], [4, 2967]], np.int32)
    found = disks(size, mpp, grid, centers, diameter_um)
    out = RowStatus.OUTSIDE_SLIDE
    assert found.statuses.tolist() == [0, 0, 0, 0, out, out]
    row, column = np.indices(grid)
    for spot, (x, y) in enumerate(centers):
        # In micrometres; the slide is 2216 px of 0.5 µm wide after rounding, and 2961 high.
        dx = (column + 0.5) * 16 * 0.5 - x * (2216 / 2220) * 0.5
        dy = (row + 0.5) * 16 * 0.5 - y * (2961 / 2967) * 0.5
        within = (dx**2 + dy**2 <= (diameter_um / 2) ** 2) & (found.statuses[spot] == 0)
        assert set(found.superpixels[found.spots == spot]) == set(np.flatnonzero(within))
        assert found.counts[spot] == within.sum()
    np.testing.assert_array_equal(found.distinct, np.unique(found.superpixels))


def test_a_spot_smaller_than_a_superpixel_takes_the_one_it_lies_in():
    found = disks((2000, 2000), 0.5, (128, 128), np.array([[0, 0], [160, 1999]], np.int32), 1.0)
    assert found.superpixels.tolist() == [0, 124 * 128 + 10]


@pytest.mark.parametrize("diameter_um", [0, -5, float("nan"), float("inf"), 1e6])
def test_a_diameter_is_never_guessed(diameter_um):
    with pytest.raises(SpotError, match="diameter"):
        disks((2000, 2000), 0.5, (128, 128), np.zeros((1, 2), np.int32), diameter_um)


def test_spots_that_would_fill_the_memory_are_refused():
    with pytest.raises(SpotError, match="split it"):
        disks((2000, 2000), 0.5, (128, 128), np.zeros((MAX_PAIRS // 12_000, 2), np.int32), 1000.0)
