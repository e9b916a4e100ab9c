"""Files of spots: what each form means, and that nothing is guessed."""

import gzip
import re
import shutil
import sys

import numpy as np
import pytest
from m2ost_contract import install_command
from m2ost_preprocess.errors import SpotError
from m2ost_preprocess.slides.spots import read_spots

VISIUM = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_real_selection_file(selection):
    spots = read_spots(selection)
    assert len(spots) == sum(line.endswith("\t1") for line in selection.read_text(encoding="utf-8").splitlines())
    assert spots.names[0] == "25x13"
    assert spots.centers[0].tolist() == [6930.58, 3510.24]
    assert 250 < spots.pitch_px < 320
    assert spots.columns == ("pixel_x", "pixel_y")


@pytest.mark.parametrize(
    ("text", "names", "centers"),
    [
        ("pixel_x,pixel_y\n1.5,2\n3,4\n", ("0", "1"), [[1.5, 2], [3, 4]]),
        ("name,x,y\na,1,2\nb,3,-4\n", ("a", "b"), [[1, 2], [3, -4]]),
        ("barcode\tx_px\ty_px\nAAAC-1\t10\t20\n", ("AAAC-1",), [[10, 20]]),
        ("x\ty\tpixel_x\tpixel_y\tselected\n1\t2\t10\t20\t1\n3\t4\t30\t40\t0\n", ("1x2",), [[10, 20]]),
        ("\ufeffx,y\r\n1,2\r\n", ("0",), [[1, 2]]),
        ("x,y\r1,2\r\r", ("0",), [[1, 2]]),
        (",X,Y\n7x9,1.5,2\n", ("7x9",), [[1.5, 2]]),
        ("id,X,Y\n7x9,1.5,2\n", ("7x9",), [[1.5, 2]]),
        (VISIUM + "AC-1,1,0,0,20,10\nAG-1,0,0,2,20,30\n", ("AC-1",), [[10, 20]]),
        ("AC-1,1,0,0,20,10\nAG-1,0,0,2,20,30\nAT-1,1,0,4,20,50\n", ("AC-1", "AT-1"), [[10, 20], [50, 20]]),
        # Excel: semicolons; Unicode text; a name with the delimiter in it.
        ("Name;x_px;y_px\na;1.5;2\n", ("a",), [[1.5, 2]]),
        ("name\tx\ty\r\nß\t1\t2\r\n".encode("utf-16"), ("ß",), [[1, 2]]),
        ('"name", x,y\n"a, b", 1,2\n', ("a, b",), [[1, 2]]),
        # R: write.table, with its own blanks, with tabs, with commas; write.csv of a table that read.csv has read.
        ('"x" "y"\n"1" 10 20\n"2" 30 40\n', ("1", "2"), [[10, 20], [30, 40]]),
        ("x\ty\tnote\nAC-1\t10\t20\t7\nAG-1\t30\t40\t8\n", ("AC-1", "AG-1"), [[10, 20], [30, 40]]),
        ("pixel_x,pixel_y\nAC-1,10,20\nAG-1,30,40\n", ("AC-1", "AG-1"), [[10, 20], [30, 40]]),
        ('"","X","x","y"\n"1",1,10,20\n', ("1",), [[10, 20]]),
        ("level0_x,level0_y,pixel_x,pixel_y\n1,2,3,4\n", ("0",), [[1, 2]]),
    ],
)
def test_spot_tables(tmp_path, text, names, centers):
    spots = read_spots(write(tmp_path / "spots.csv", text))
    assert spots.names == names
    assert spots.centers.tolist() == centers


TRUE, FALSE = (
    ("1", "1.0", "TRUE", "true", "T", "yes", " 1 "),
    ("0", "0.0", "0.00", "FALSE", "False", "F", "f", "no", "N"),
)


@pytest.mark.parametrize("column", ["in_tissue", "selected", "In_Tissue"])
def test_flags_in_every_spelling(tmp_path, column):
    rows = [f"{i},{flag},{i},5" for i, flag in enumerate(TRUE + FALSE)]
    spots = read_spots(write(tmp_path / "spots.csv", "\n".join([f"name,{column},x_px,y_px", *rows])))
    assert spots.names == tuple(map(str, range(len(TRUE))))


@pytest.mark.parametrize("flag", ["", "NA", "2", "-1", "nan", "maybe", "wahr"])
def test_a_flag_that_is_none_is_named(tmp_path, flag):
    path = write(tmp_path / "spots.csv", f"{VISIUM}AC-1,1,0,0,20,10\nAG-1,{flag},0,2,20,30\n")
    with pytest.raises(SpotError, match=rf"spots.csv, line 3, column in_tissue: '{flag}' is neither true nor false"):
        read_spots(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("\r\n\n", "empty"),
        ('""\n', "no pixel columns"),
        ("x,y\n", "holds no spot"),
        ("x,y,selected\n1,2,0\n", "none of its 1 spots counts"),
        ("a,b\n1,2\n", "no pixel columns among a, b"),
        ("400,300\n500,300\n", "no pixel columns among 300, 400"),
        ("x,y\n1,2\nnan,4\n", "line 3: x='nan'"),
        ("x,y\n1,inf\n", "line 2"),
        ("x,y\n1,\n", "line 2"),
        ("x,y\n1\n", "line 2: 1 fields, where the header has 2"),
        ("x,y\n1,abc\n", "line 2: x='1', y='abc'"),
        ("x,y\n7_9,5\n", "line 2: x='7_9'"),
        ("x;y\n812,5;40\n", "line 2: x='812,5'.*decimals with a point"),
        ("x,y\n1e12,5\n", "line 2"),
        ("AC-1,1,0,0,20,10\nAG-1,1,0,2,20,\n", "line 2: pxl_col_in_fullres=''"),
        ("AC-1,1,0,0,20,10\nAC-1,1,0,2,20,30\n", "line 2: spot 'AC-1' appears twice, in .*line 1 before"),
        ("name,x,y\na,1,2\na,3,4\n", "line 3: spot 'a' appears twice"),
        ("x,y\n" + "9" * 200_000 + ",5\n", "field larger than"),
        ('x,y,name\n1,2,"a\n3,4,b\n', "unexpected end of data"),
        # A field more than the header has, and not for R's sake.
        ("x,y\n1,2\n3,4,5\n", "line 3: 3 fields, where the header has 2"),
        ("x,y\n1,2,\n3,4,\n", "line 2: 3 fields"),
        ("x\ty\tnote\n1\t2\t3\t\n4\t5\t6\t\n", "line 2: 4 fields"),
        ("x,y\n812,5,40\n900,5,40\n", "line 2: 3 fields"),
        ("name,x,y\na,812,5,40\nb,900,5,40\n", "line 2: 4 fields"),
        ("x\ty\na\t1\t2\na\t3\t4\n", "line 2: 3 fields"),
        # Names.
        ("name,x,y\n,1,2\n", "line 2: the spot has no name"),
        ("x,y,name\n1,2,a\n3,4\n", "line 3: 2 fields, where the header has 3"),
        ("name,x,y\na\0b,1,2\n", r"line 2: name 'a\\x00b' holds a control character"),
        ('name,x,y\n"a\nb",1,2\n', r"line 3: name 'a\\nb' holds a control character"),
        # Columns of which it is not clear what they mean.
        ("x\ty\tnew_x\tnew_y\n7\t9\t7.03\t9.01\n", "x, y beside new_x, new_y may be places on an array.*pixel_x and"),
        ("name,imagerow,imagecol,x,y\nA,300,400,4,10\n", "x, y beside imagerow, imagecol"),
        ("x,y,Pixel_X,Pixel_Y\n1,2,300,400\n", "x, y beside Pixel_X, Pixel_Y"),
        ("x,y,X,Y\n1,2,300,400\n", "x, y beside X, Y"),
        ("x,y,x\n1,2,300\n", "column x is there twice"),
        ("x,y,in_tissue,In_tissue\n1,2,1,0\n", "column in_tissue is there twice"),
        ("pixel_x,pixel_y,x_px,y_px\n1,2,3,4\n", "pixel_x, pixel_y and x_px, y_px all say pixels"),
        ("name,x,y\nä,1,2\n".encode("latin-1"), r"can't decode.*save the table as CSV \(UTF-8\)"),
        (b"PK\x03\x04 a workbook", "a workbook.*save the table as CSV"),
        (gzip.compress(b"x,y\n1,2\n", mtime=0)[:-9], "cannot read"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_bad_spot_tables_name_the_line(tmp_path, text, message):
    path = write(tmp_path / "spots.csv", text)
    with pytest.raises(SpotError, match=message) as error:
        read_spots(path)
    assert str(path) in str(error.value)


def test_an_absent_spot_file(tmp_path):
    with pytest.raises(SpotError, match=r"absent.csv: cannot read"):
        read_spots(tmp_path / "absent.csv")


def visium_hd(path, **columns):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    whole = {
        "barcode": ["s_016um_00000_00000-1", "s_016um_00000_00001-1", "s_016um_00000_00002-1"],
        "in_tissue": [1, 0, 1],
        "array_row": [0, 0, 0],
        "array_col": [0, 1, 2],
        "pxl_row_in_fullres": [300.5, 300.75, 301.0],
        "pxl_col_in_fullres": [400.2, 458.7, 517.2],
    }
    pq.write_table(pa.table({**whole, **columns}), path)
    return path


def test_positions_of_visium_hd(tmp_path):
    spots = read_spots(visium_hd(tmp_path / "tissue_positions.parquet"))
    assert spots.names == ("s_016um_00000_00000-1", "s_016um_00000_00002-1")
    assert spots.centers.tolist() == [[400.2, 300.5], [517.2, 301.0]]


def test_a_parquet_file_that_pandas_wrote_with_names_as_its_index(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pd.DataFrame({"x": [1, 2], "y": [3.5, 4]}, index=["b", "a"]).to_parquet(tmp_path / "spots")
    spots = read_spots(tmp_path / "spots")
    assert spots.names == ("b", "a")
    assert spots.centers.tolist() == [[1, 3.5], [2, 4]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"in_tissue": [1, None, 1]}, "row 2, column in_tissue: nan is neither"),
        ({"barcode": ["a", "b", None]}, "row 3: the spot has no name"),
        ({"pxl_row_in_fullres": [1.0, 2.0, None]}, "row 3: pxl_col_in_fullres=517.2, pxl_row_in_fullres=nan is not"),
    ],
)
def test_bad_parquet_names_the_row(tmp_path, columns, message):
    with pytest.raises(SpotError, match=message):
        read_spots(visium_hd(tmp_path / "positions", **columns))
    (tmp_path / "cut").write_bytes(visium_hd(tmp_path / "positions").read_bytes()[:-40])
    with pytest.raises(SpotError, match="cannot read the Parquet file"):
        read_spots(tmp_path / "cut")


def write_h5ad(path, names=("a", "b"), spatial=((1.5, 2), (3, 4)), **obs):
    ad, pd = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    table = ad.AnnData(obs=pd.DataFrame(obs, index=pd.Index(names, dtype=str)))
    spatial = np.asarray(spatial) if isinstance(spatial, tuple) else spatial
    if len(spatial) == len(names):
        table.obsm["spatial"] = spatial
    table.write_h5ad(path)
    return path


def frame(columns, rows, names=("a", "b")):
    return pytest.importorskip("pandas").DataFrame(rows, columns=columns, index=names)


def test_spots_of_an_h5ad(tmp_path):
    spots = read_spots(write_h5ad(tmp_path / "slide.h5ad"))
    assert spots.names == ("a", "b")
    assert spots.centers.tolist() == [[1.5, 2], [3, 4]]
    assert spots.source == "file slide.h5ad"


@pytest.mark.parametrize("columns", [("pxl_row_in_fullres", "pxl_col_in_fullres"), ("y", "x")])
def test_a_frame_of_positions_is_read_by_its_columns(tmp_path, columns):
    spots = read_spots(write_h5ad(tmp_path / "slide.h5ad", spatial=frame(columns, [[2, 1.5], [4, 3]])))
    assert spots.centers.tolist() == [[1.5, 2], [3, 4]]


@pytest.mark.parametrize("flags", [[1, 0], [True, False], ["TRUE", "FALSE"], [1.0, 0.0]])
def test_spots_of_an_h5ad_that_are_not_in_tissue_are_left_out(tmp_path, flags):
    spots = read_spots(write_h5ad(tmp_path / "slide.h5ad", in_tissue=flags))
    assert (spots.names, spots.centers.tolist()) == (("a",), [[1.5, 2]])


def write_old_h5ad(path):
    """As anndata 0.6 wrote it: tables are compound datasets, and categories lie in ``uns``."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["obs"] = np.array([(b"a", 1), (b"b", 0)], [("index", "S8"), ("in_tissue", "i1")])
        file["uns/in_tissue_categories"] = np.array([b"1", b"0"])
        file["var"] = np.array([(b"g",)], [("index", "S8")])
        file["obsm"] = np.array([((1.5, 2),), ((3, 4),)], [("spatial", "f8", (2,))])
        file["X"] = np.ones((2, 1), np.float32)
    return path


def test_spots_of_an_h5ad_of_anndata_0_6(tmp_path):
    pytest.importorskip("anndata")
    spots = read_spots(write_old_h5ad(tmp_path / "old.h5ad"))
    assert (spots.names, spots.centers.tolist()) == (("b",), [[3, 4]])


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": ("a", "a")}, "spot a: spot 'a' appears twice"),
        ({"names": ("a", "")}, "the spot has no name"),
        ({"spatial": ((1, 2, 3), (4, 5, 6))}, r"shape \(2, 3\)"),
        ({"spatial": ((1, 2), (3, float("nan")))}, r"spot b: .*=3.0, .*=nan is not a finite"),
        ({"names": ("a", "b", "c")}, "cannot read obs_names"),
        ({"in_tissue": [1, 2]}, r"spot b, column obs\['in_tissue'\]: 2 is neither"),
        ({"in_tissue": [0, 0]}, "none of its 2 spots counts"),
    ],
)
def test_a_bad_h5ad_is_named(tmp_path, content, message):
    path = write_h5ad(tmp_path / "slide.h5ad", **content)
    with pytest.raises(SpotError, match=message) as error:
        read_spots(path)
    assert str(path) in str(error.value)


def test_a_frame_of_places_on_an_array(tmp_path):
    path = write_h5ad(tmp_path / "slide.h5ad", spatial=frame(("array_row", "array_col"), [[2, 1], [4, 3]]))
    with pytest.raises(SpotError, match="has the columns array_row, array_col; name"):
        read_spots(path)


def test_an_h5ad_that_is_cut_off(tmp_path):
    path = write_h5ad(tmp_path / "slide.h5ad")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SpotError, match="cannot read obs_names"):
        read_spots(path)


@pytest.mark.parametrize("make", [visium_hd, write_h5ad, lambda path: write(path, "x,y\n1,2\n")])
@pytest.mark.parametrize("name", ["a.csv", "a.h5ad", "a.H5AD", "a.parquet", "a"])
def test_the_content_tells_the_form_also_packed(tmp_path, make, name):
    plain = make(tmp_path / "made")
    expected = read_spots(plain)
    shutil.copy(plain, tmp_path / name)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    for path in (tmp_path / name, tmp_path / f"{name}.gz"):
        spots = read_spots(path)
        assert (spots.names, spots.centers.tolist()) == (expected.names, expected.centers.tolist())


@pytest.mark.parametrize(("package", "make"), [("anndata", write_h5ad), ("h5py", write_h5ad), ("pyarrow", visium_hd)])
def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch, package, make):
    path = make(tmp_path / "spots")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SpotError, match=rf"{package}.*{re.escape(install_command('client'))}"):
        read_spots(path)
