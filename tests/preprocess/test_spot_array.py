"""Where a slide-level network's positions come from: a file that tells them, or the grid."""

import numpy as np
import pytest
from m2ost_preprocess.errors import SpotError
from m2ost_preprocess.slides.rectangle import Rectangle
from m2ost_preprocess.slides.spots import grid, read_spots

from .test_spot_files import VISIUM, write


def test_a_real_selection_has_them_in_its_names(selection):
    spots = read_spots(selection)
    assert [f"{x}x{y}" for x, y in spots.places()] == list(spots.names)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("pixel_x,pixel_y,array_x,array_y\n10,20,3,4\n30,40,5,6\n", [[3, 4], [5, 6]]),
        ("x\ty\tpixel_x\tpixel_y\tselected\n1\t2\t10\t20\t0\n3\t4\t30\t40\t1\n", [[3, 4]]),
        (VISIUM + "AC-1,1,7,2,20,10\nAG-1,1,8,9,20,30\n", [[2, 7], [9, 8]]),
        ("AC-1,1,7,2,20,10\nAT-1,1,8,9,20,50\n", [[2, 7], [9, 8]]),
        ("array_y,array_x,level0_x,level0_y\n-1,300,3,4\n", [[300, -1]]),
    ],
)
def test_columns_of_places(tmp_path, text, places):
    assert read_spots(write(tmp_path / "spots.csv", text)).places().tolist() == places


@pytest.mark.parametrize(
    "text",
    [
        "pixel_x,pixel_y\n10,20\n",
        "x,y\n10,20\n",
        "pixel_x,pixel_y,array_x,array_y\n10,20,3.5,4\n",
        "pixel_x,pixel_y,array_x,array_y\n10,20,3,4\n30,40,,\n",
        "pixel_x,pixel_y,array_x,array_y\n10,20,3,9999999999\n",
    ],
)
def test_a_file_without_them_is_read_and_says_what_it_lacks_when_asked(tmp_path, text):
    spots = read_spots(write(tmp_path / "spots.csv", text))
    assert len(spots) >= 1
    with pytest.raises(SpotError, match=r"file spots\.csv: this network predicts a slide as a whole and needs places"):
        spots.places()


def test_an_h5ad_has_them_in_obs(tmp_path):
    anndata = pytest.importorskip("anndata")
    pd = pytest.importorskip("pandas")
    obs = pd.DataFrame({"array_row": [1, 2, 3], "array_col": [4, 5, 6], "in_tissue": [1, 0, 1]}, index=["a", "b", "c"])
    table = anndata.AnnData(X=np.zeros((3, 1), np.float32), obs=obs)
    table.obsm["spatial"] = np.array([[10.0, 20], [30, 40], [50, 60]])
    table.write_h5ad(tmp_path / "spots.h5ad")
    assert read_spots(tmp_path / "spots.h5ad").places().tolist() == [[4, 1], [6, 3]]


def test_a_grid_counts_columns_and_rows_from_the_first_that_have_a_spot():
    mask = np.zeros((60, 90), bool)
    mask[20:50, 30:80] = True
    spots = grid((900, 600), mask, 101.3)
    places = spots.places()
    named = np.array([[int(part) for part in name.split("x")] for name in spots.names])
    np.testing.assert_array_equal(places, named - named.min(axis=0))
    assert places.min(axis=0).tolist() == [0, 0]
    part = spots.within(Rectangle.parse("500,300,200,200"))
    assert 1 < len(part) < len(spots)
    assert part.places().min(axis=0).tolist() == [0, 0]
    assert len({tuple(place) for place in part.places()}) == len(part)


def test_a_region_of_a_file_keeps_its_places(tmp_path):
    text = "pixel_x,pixel_y,array_x,array_y\n10,20,3,4\n30,40,5,6\n90,90,7,8\n"
    spots = read_spots(write(tmp_path / "spots.csv", text)).within(Rectangle.parse("20,20,80,80"))
    assert spots.places().tolist() == [[5, 6], [7, 8]]
    assert spots.within(Rectangle.parse("0,0,1,1")).places().shape == (0, 2)


def test_no_spots_have_no_places():
    assert grid((900, 600), np.zeros((6, 9), bool), 100.0).places().shape == (0, 2)
