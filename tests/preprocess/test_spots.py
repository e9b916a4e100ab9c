"""Tissue, spot grids and spot files."""

import gzip
import sys

import numpy as np
import pytest
from m2ost_preprocess.errors import SpotError
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.spots import grid, median_pitch_px, read_spots
from m2ost_preprocess.tissue import tissue_mask


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


def test_a_real_selection_file(selection):
    spots = read_spots(selection)
    assert len(spots) == sum(line.endswith("\t1") for line in selection.read_text(encoding="utf-8").splitlines())
    assert spots.names[0] == "25x13"
    assert spots.centers[0].tolist() == [6930.58, 3510.24]
    assert 250 < spots.pitch_px < 320


@pytest.mark.parametrize(
    ("text", "names", "centers"),
    [
        ("pixel_x,pixel_y\n1.5,2\n3,4\n", ("0", "1"), [[1.5, 2], [3, 4]]),
        ("name,x,y\na,1,2\nb,3,-4\n", ("a", "b"), [[1, 2], [3, -4]]),
        ("barcode\tx_px\ty_px\nAAAC-1\t10\t20\n", ("AAAC-1",), [[10, 20]]),
        ("x\ty\tpixel_x\tpixel_y\tselected\n1\t2\t10\t20\t1\n3\t4\t30\t40\t0\n", ("1x2",), [[10, 20]]),
        ("\ufeffx,y\r\n1,2\r\n", ("0",), [[1, 2]]),
        (",X,Y\n7x9,1.5,2\n", ("7x9",), [[1.5, 2]]),
        ("id,X,Y\n7x9,1.5,2\n", ("7x9",), [[1.5, 2]]),
        (
            "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\nAC-1,1,0,0,20,10\nAG-1,0,0,2,20,30\n",
            ("AC-1",),
            [[10, 20]],
        ),
        ("AC-1,1,0,0,20,10\nAG-1,0,0,2,20,30\nAT-1,1,0,4,20,50\n", ("AC-1", "AT-1"), [[10, 20], [50, 20]]),
        ("x,y\n", (), []),
    ],
)
def test_spot_tables(tmp_path, text, names, centers):
    path = tmp_path / "spots.csv"
    path.write_bytes(text.encode())
    spots = read_spots(path)
    assert spots.names == names
    assert spots.centers.tolist() == centers
    assert spots.centers.shape == (len(names), 2)


def test_a_packed_table_is_read_as_it_is(tmp_path, selection):
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(selection.read_bytes()))
    assert read_spots(packed).names == read_spots(selection).names


def write_h5ad(path, names=("a", "b"), spatial=((1.5, 2), (3, 4))):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["obs/spot"] = list(names)
        file["obs"].attrs["_index"] = "spot"
        file["obsm/spatial"] = spatial
    return path


def test_spots_of_an_h5ad(tmp_path):
    spots = read_spots(write_h5ad(tmp_path / "slide.h5ad"))
    assert spots.names == ("a", "b")
    assert spots.centers.tolist() == [[1.5, 2], [3, 4]]
    assert spots.source == "file slide.h5ad"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": ("a", "a")}, "'a' appears twice"),
        ({"names": ("a", "b", "c")}, "for 3 spots"),
        ({"spatial": ((1, 2, 3), (4, 5, 6))}, "shape"),
        ({"spatial": ((1, 2), (3, float("nan")))}, r"spot b: \[3.0, nan\] is not a finite"),
        ({"spatial": ("near", "far")}, "cannot read obs_names"),
    ],
)
def test_a_bad_h5ad_is_named(tmp_path, content, message):
    path = write_h5ad(tmp_path / "slide.h5ad", **content)
    with pytest.raises(SpotError, match=message) as error:
        read_spots(path)
    assert str(path) in str(error.value)


def test_an_h5ad_that_is_none(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "slide.h5ad").write_text("x,y\n1,2\n")
    with pytest.raises(SpotError, match="cannot read obs_names"):
        read_spots(tmp_path / "slide.h5ad")


def test_without_h5py_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SpotError, match=r"pip install 'm2ost-triton\[client\]'"):
        read_spots(tmp_path / "slide.h5ad")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("a,b\n1,2\n", "no pixel columns among a, b"),
        ("x,y\n1,2\nnan,4\n", "line 3: x='nan'"),
        ("x,y\n1,inf\n", "line 2"),
        ("x,y\n1,\n", "line 2"),
        ("x,y\n1\n", "line 2"),
        ("x,y\n1,abc\n", "line 2: x='1', y='abc'"),
        ("name,x,y\na,1,2\na,3,4\n", "'a' appears twice"),
        ("x,y\n1e12,5\n", "line 2"),
        ("AC-1,1,0,0,20,10\nAG-1,1,0,2,20,\n", "line 2: pxl_col_in_fullres=''"),
        ("AC-1,1,0,0,20,10\nAC-1,1,0,2,20,30\n", "'AC-1' appears twice"),
        ("x,y\n" + "9" * 200_000 + ",5\n", "field larger than"),
    ],
)
def test_bad_spot_tables_name_the_line(tmp_path, text, message):
    path = tmp_path / "spots.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpotError, match=message) as error:
        read_spots(path)
    assert str(path) in str(error.value)


def test_unreadable_spot_files(tmp_path):
    with pytest.raises(SpotError, match="cannot read"):
        read_spots(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SpotError, match="cannot read"):
        read_spots(tmp_path / "binary.csv")
