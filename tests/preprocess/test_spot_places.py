"""Positions that cannot be pixels of a slide are refused; whatever lies on tissue, and whatever few spots, are not."""

import numpy as np
import pytest
from m2ost_preprocess.errors import SpotError
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides.spot_columns import LEVEL0
from m2ost_preprocess.slides.spot_places import check_places
from m2ost_preprocess.slides.spots import read_spots
from m2ost_preprocess.slides.tissue import MASK_PX

SIZE = (9000, 10000)
X_Y = ("x", "y")


def overview(tissue=(3000, 3000, 7000, 8000)):
    """Of a slide whose tissue is one rectangle."""
    pixels = np.full((500, 450, 3), 243, np.uint8)
    left, top, right, bottom = (edge // 20 for edge in tissue)
    pixels[top:bottom, left:right] = (180, 80, 150)
    return pixels


def check(centers, *, size=SIZE, columns=X_Y, pixels=overview):
    check_places(np.asarray(centers, np.float64), size, pixels, source="spots.csv", columns=columns)


def lattice(left, top, columns, rows, pitch_px):
    x, y = np.meshgrid(left + np.arange(columns) * pitch_px, top + np.arange(rows) * pitch_px)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def no_overview():
    raise AssertionError("an overview was made")


@pytest.mark.parametrize(
    "centers",
    [
        np.zeros((0, 2)),
        [[4000, 5000]],
        [[10, 20]],
        [[5000.5, 5000], [5001, 5000.5], [5000, 5001]],
        [[700, 700], [700, 700], [701, 700]],
        [[400, 300], [500, 300]],
        [[100, 100], [9500, 100], [100, 10500]],
        lattice(3100, 3200, 30, 30, 16),
        lattice(3000, 3000, 18, 22, 200),
        lattice(3200, 3500, 60, 60, 2),
        np.repeat(lattice(3000, 3100, 5, 5, 100), 3, axis=0),
        # In the first half of both sides: on tissue, and a square of glass, half of which comes to lie on tissue by 16.
        lattice(3000, 3000, 10, 15, 100),
        lattice(100, 100, 20, 20, 16),
    ],
)
def test_what_can_be_pixels_is_accepted(centers):
    check(centers)


def test_an_overview_is_made_only_where_it_may_tell():
    check(lattice(3000, 3000, 18, 22, 200), pixels=no_overview)
    check(lattice(10, 20, 3, 3, 100), pixels=no_overview)


@pytest.mark.parametrize("size", [SIZE, (2220, 2967), (40000, 30000)])
@pytest.mark.parametrize(
    "places",
    [
        lattice(1, 1, 33, 35, 1),
        lattice(7.03, 9.01, 2, 1, 0.98),
        [[column, row] for row in range(78) for column in range(row % 2, 128, 2)],
        lattice(5, 11, 40, 60, 1)[::3],
        lattice(0, 0, 200, 200, 1),
        np.repeat(lattice(1, 1, 33, 35, 1), 2, axis=0),
    ],
    ids=["ST", "two of ST", "Visium", "a third of an array", "Visium HD", "each place twice"],
)
def test_places_on_an_array_are_refused(places, size):
    with pytest.raises(SpotError, match=r"places on an array; give them in level-0 pixels; if they are, name the") as e:
        check(places, size=size)
    assert "spots.csv: x, y from (" in str(e.value)
    assert f"on a slide of {size[0]}×{size[1]} px" in str(e.value)
    check(places, size=size, columns=LEVEL0)


@pytest.mark.parametrize(("section", "side_px"), [("C2", 600), ("C2", 2000), ("C2", 4000), ("B4", 2000)])
def test_real_spots_in_pixels_of_a_smaller_image_are_refused(shared_section, side_px):
    spots, size, pixels = shared_section
    check(spots.centers, size=size, columns=spots.columns, pixels=pixels)
    smaller = spots.centers * side_px / max(size)
    with pytest.raises(SpotError, match=rf"off the tissue, and on it when multiplied by {max(size) / side_px:.4g}"):
        check(smaller, size=size, columns=spots.columns, pixels=pixels)
    check(smaller, size=size, columns=LEVEL0, pixels=pixels)


@pytest.fixture(scope="module")
def overviews():
    return {}


@pytest.fixture
def shared_section(section, overviews):
    from tests.support.data import shared_file

    image = shared_file(f"her2st/images/{section}.jpg")
    if section not in overviews:
        reader = open_slide(image)
        overviews[section] = reader.size, reader.thumbnail(MASK_PX)
    size, pixels = overviews[section]
    return read_spots(shared_file(f"her2st/spots/{section}_selection.tsv")), size, lambda: pixels


@pytest.mark.parametrize("reduction", [2, 4, 8, 64])
def test_pixels_of_a_lower_level_are_refused(reduction):
    spots = lattice(3000, 3000, 18, 22, 200) + 50
    with pytest.raises(SpotError, match=rf"multiplied by {reduction}: these look like pixels of a smaller image"):
        check(spots / reduction)


def test_a_slide_that_is_tissue_all_over_and_one_without_tell_nothing():
    spots = lattice(300, 300, 18, 22, 20)
    check(spots, pixels=lambda: np.full((500, 450, 3), 243, np.uint8))
    check(spots, pixels=lambda: overview((0, 0, 7000, 8000)))


@pytest.mark.parametrize(
    ("centers", "columns", "message"),
    [
        ([[9001, 5]], X_Y, "1 of 1 spots lie outside"),
        ([[9001, 5]], LEVEL0, "1 of 1 spots lie outside"),
        ([[-5, 5], [5, 10000]], X_Y, r"from \(-5, 5\) to \(5, 10000\) on a slide of 9000×10000 px: 2 of 2 spots"),
        (lattice(6000, 7000, 4, 4, 2000), X_Y, "12 of 16 spots lie outside"),
    ],
)
def test_positions_outside_are_refused(centers, columns, message):
    with pytest.raises(SpotError, match=message):
        check(centers, columns=columns)
