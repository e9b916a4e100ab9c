"""What a manifest, a folder or a pattern comes to, and what is said of one that cannot be used."""

import pandas as pd
import pytest
from m2ost_client import InputError
from m2ost_client.archive import read_slides, roots_of
from m2ost_preprocess.home import NoHomeFolder


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_table_with_everything(tmp_path):
    (tmp_path / "spots.csv").write_text("x,y\n1,2\n")
    (tmp_path / "mask.png").touch()
    text = (
        "slide_id,path,mpp,spots,mask,pitch_um,stain\n"
        "a,sub/a.svs,0.5,,mask.png,80,HE\n"
        'b,"/data/b, c.svs",,spots.csv,,,HE\n'
        "c,s3://bucket/c.svs,NA,,,,HE\n"
    )
    found = read_slides(write(tmp_path / "slides.csv", text))
    assert found.unused == ("stain",)
    a, b, c = found.rows
    assert (a.path, a.mpp, a.mask, a.pitch_um) == (f"{tmp_path}/sub/a.svs", 0.5, f"{tmp_path}/mask.png", 80.0)
    assert (b.path, b.mpp, b.spots) == ("/data/b, c.svs", None, f"{tmp_path}/spots.csv")
    assert (c.path, c.mpp) == ("s3://bucket/c.svs", None)
    pd.read_csv(tmp_path / "slides.csv").to_parquet(tmp_path / "slides.parquet")
    assert read_slides(str(tmp_path / "slides.parquet")).rows == found.rows
    tabs = write(tmp_path / "slides.tsv", "slide_id\tpath\n7\troot/a.svs\n")
    (row,) = read_slides(tabs, names_on_server=True).rows
    assert (row.slide_id, row.path) == ("7", "root/a.svs")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,path\n", r"no column 'slide_id' \(it has id, path\)"),
        ("slide_id,path,path\n", "column 'path' appears twice"),
        ("slide_id,path\na,x.svs\n,y.svs\n", "row 3, column 'slide_id': empty"),
        ("slide_id,path\na,\n", "row 2, column 'path': empty"),
        ("slide_id,path\na/b,x.svs\n", "row 2, column 'slide_id': 'a/b' cannot name files"),
        ("slide_id,path\n..,x.svs\n", "cannot name files"),
        (f"slide_id,path\n{'é' * 100},x.svs\n", "longer than 150 bytes"),
        ("slide_id,path,mpp\na,x.svs,0\n", "row 2, column 'mpp': '0' is not a positive number"),
        ("slide_id,path,pitch_um\na,x.svs,wide\n", "row 2, column 'pitch_um': 'wide' is not"),
        ("slide_id,path,mask\na,x.svs,no.png\n", r"row 2, column 'mask': .*no\.png: no such file"),
        ("slide_id,path,spots,pitch_um\na,x.svs,slides.csv,9\n", "row 2, column 'spots': with a file of spots"),
        ("slide_id,path\na,x.svs,3\n", "row 2: it has not the header's 2 fields"),
        ("slide_id,path\na,x.svs\na,y.svs\n", r"'a' is the id of .*x\.svs and of .*y\.svs; ids must be unique"),
        ("slide_id,path\n", "no slides"),
        ("", "no column 'slide_id'"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_place(tmp_path, text, words):
    with pytest.raises(InputError, match=words) as error:
        read_slides(write(tmp_path / "slides.csv", text))
    assert "slides.csv" in str(error.value)


def test_a_home_folder_that_this_machine_does_not_know(tmp_path):
    for column, cells in (("path", "~nosuchuser/a.svs,"), ("mask", "a.svs,~nosuchuser/m.png")):
        with pytest.raises(InputError, match=f"row 2, column '{column}': ~nosuchuser/.*no home folder ~nosuchuser"):
            read_slides(write(tmp_path / "slides.csv", f"slide_id,path,mask\na,{cells}\n"))
    with pytest.raises(NoHomeFolder, match="write the folder in full"):
        read_slides("~nosuchuser/slides")


def test_an_embedded_server_gets_few_roots_that_hold_all_slides(tmp_path):
    paths = []
    for i in range(100):
        (tmp_path / f"case{i % 50}" / f"block{i}").mkdir(parents=True)
        paths.append(tmp_path / f"case{i % 50}" / f"block{i}" / "a.svs")
        paths[-1].touch()
    assert roots_of(map(str, paths), tmp_path / "cache") == {"slides": tmp_path, "staged": tmp_path / "cache"}
    few = roots_of(map(str, [paths[0], paths[1], tmp_path / "absent" / "b.svs"]), None)
    assert few == {"slides": paths[0].parent, "slides1": paths[1].parent}
    paths[1].with_name("deep").mkdir()
    inner = paths[1].with_name("deep") / "c.svs"
    inner.touch()
    assert roots_of(map(str, [paths[1], inner]), None) == {"slides": paths[1].parent}
