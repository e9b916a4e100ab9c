"""What a folder, a pattern or a single file comes to: every file is a slide, part of one, or named with its reason."""

import os
from pathlib import Path

import pytest
from m2ost_client import InputError
from m2ost_client.archive import read_slides, scan
from m2ost_client.archive.access import existing
from m2ost_preprocess.errors import SlideNotFound

TIFF = b"II*\0" + bytes(200)
HEADS = {
    "tiff": TIFF,
    "big-endian": b"MM\0*" + bytes(200),
    "bigtiff": b"II+\0" + bytes(200),
    "jpeg": b"\xff\xd8\xff\xe0" + bytes(200),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "czi": b"ZISRAWFILE" + bytes(200),
}


def element(tag, value):
    """A DICOM data element, explicit VR."""
    number = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    return number + b"UI" + len(value).to_bytes(2, "little") + value


def instance(series):
    """The start of a DICOM file of a series; of none where that is empty."""
    own = element(0x0020000E, series) if series else element(0x00400001, b"1.2")
    return bytes(128) + b"DICM" + element(0x00020010, b"1.2.840.10008.1.2.1") + own + bytes(64)


def fill(root, files):
    """Write files; their content by name, or empty."""
    for name, data in (files if isinstance(files, dict) else dict.fromkeys(files, b"")).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def rows_of(found, root):
    return {row.slide_id: os.path.relpath(row.path, root) for row in found.rows}


def left_out_of(found, root):
    """Reason and whether it is a problem, by path."""
    return {os.path.relpath(left.path, root): (left.reason, left.problem) for left in found.left_out}


def test_a_folder(tmp_path):
    names = ["a.svs", "b/a.svs", "b/notes.txt", ".hidden/c.svs", ".DS_Store", "e.mrxs", "e/f.jpg", "e/Slidedat.ini"]
    fill(tmp_path, names)
    found = read_slides(str(tmp_path))
    assert rows_of(found, tmp_path) == {"a": "a.svs", "b__a": "b/a.svs", "e": "e.mrxs"}
    assert left_out_of(found, tmp_path) == {
        ".hidden": (scan.HIDDEN, False),
        ".DS_Store": (scan.HIDDEN, False),
        "b/notes.txt": (scan.NOT_A_SLIDE, False),
    }
    (tmp_path / "a.tif").touch()
    with pytest.raises(InputError, match="'a' is the id of"):
        read_slides(str(tmp_path))
    with pytest.raises(InputError, match="named by a manifest"):
        read_slides(str(tmp_path), names_on_server=True)


def test_the_content_decides_where_the_ending_does_not(tmp_path):
    fill(tmp_path, {f"{kind}.data": head for kind, head in HEADS.items()})
    fill(tmp_path, {"no_ending": TIFF, "x.SVS": b"", "y.BTF": TIFF, "1.2.840": TIFF})
    fill(tmp_path, {"t.json": b"{}", "t.csv": b"slide_id,path\n", "empty": b"", "short": b"II"})
    found = read_slides(str(tmp_path))
    assert set(rows_of(found, tmp_path)) == {*HEADS, "no_ending", "x", "y", "1.2.840"}
    assert set(left_out_of(found, tmp_path)) == {"t.json", "t.csv", "empty", "short"}
    assert not any(left.problem for left in found.left_out)


def test_every_series_of_a_folder_is_a_slide_and_hides_nothing_beside_it(tmp_path):
    fill(tmp_path, {f"three/{k}.dcm": instance(b"1.%d" % (k // 2)) for k in range(6)})
    fill(tmp_path, {"alone/p.dcm": instance(b"2.1"), "alone/q": instance(b"2.1")})
    fill(tmp_path, {"mixed/x.dcm": instance(b"3.1"), "mixed/other.svs": b"", "mixed/sub/deep.tif": b""})
    fill(tmp_path, {"bare/IM0": instance(b"4.1"), "bare/IM1": instance(b"4.1"), "bare/DICOMDIR": instance(b"")})
    fill(tmp_path, {"bad/a.dcm": b"", "bad/b.dcm": instance(b"5.1"), "bad/c": instance(b"")})
    found = read_slides(str(tmp_path))
    assert rows_of(found, tmp_path) == {
        "three__0": "three/0.dcm",
        "three__2": "three/2.dcm",
        "three__4": "three/4.dcm",
        "alone": "alone",
        "mixed": "mixed",
        "mixed__other": "mixed/other.svs",
        "mixed__sub__deep": "mixed/sub/deep.tif",
        "bare": "bare",
        "bad__a": "bad/a.dcm",
        "bad": "bad",
    }
    assert left_out_of(found, tmp_path) == {
        "bare/DICOMDIR": (scan.NO_SERIES, False),
        "bad/c": (scan.NO_SERIES, True),
    }


def test_images_that_an_index_lists_are_its_slide(tmp_path):
    text = b"[Virtual Microscope Specimen]\nImageFile=a.jpg\nImageFile(1,0)=a-1.jpg\nMapFile=a_map.jpg\nNoLayers=1\n"
    fill(tmp_path, {"a.vms": text, "a.jpg": b"", "a-1.jpg": b"", "a_map.jpg": b"", "b.jpg": b""})
    os.mkfifo(tmp_path / "pipe.vms")
    found = read_slides(str(tmp_path))
    assert rows_of(found, tmp_path) == {"a": "a.vms", "b": "b.jpg"}
    assert left_out_of(found, tmp_path) == {"pipe.vms": (scan.NO_FILE, True)}
    os.remove(tmp_path / "pipe.vms")
    assert rows_of(read_slides(f"{tmp_path}/*"), tmp_path) == {"a": "a.vms", "b": "b.jpg"}


@pytest.fixture
def linked(tmp_path):
    """A folder with links: to a slide, to nothing, to folders elsewhere, beside and above."""
    root, elsewhere = tmp_path / "slides", tmp_path / "elsewhere"
    fill(tmp_path, ["slides/own/one.tif", "elsewhere/deep/two.tif", "store/three.tif"])
    for name, target in (
        ("slides/a_file.tif", "../store/three.tif"),
        ("slides/gone.svs", "/nonexistent.svs"),
        ("slides/gone", "/nonexistent"),
        ("slides/a_twin", "own"),
        ("slides/loop", "."),
        ("slides/zz_elsewhere", "../elsewhere"),
        ("elsewhere/deep/back", "../../slides"),
    ):
        (tmp_path / name).symlink_to(target)
    assert elsewhere.exists()
    return root


def test_links_to_files_are_followed_and_linked_folders_elsewhere_are_told_of(linked):
    found = read_slides(str(linked))
    assert rows_of(found, linked) == {"own__one": "own/one.tif", "a_file": "a_file.tif", "gone": "gone.svs"}
    assert left_out_of(found, linked) == {
        "gone": (scan.NOTHING_BEHIND, False),
        "a_twin": (scan.SEARCHED_ALREADY, False),
        "loop": (scan.SEARCHED_ALREADY, False),
        "zz_elsewhere": (scan.LINKED_FOLDER, True),
    }


def test_a_link_to_nothing_is_a_slide_that_fails_with_where_it_leads(linked):
    with pytest.raises(SlideNotFound, match=r"gone\.svs: links to /nonexistent\.svs, which is not there"):
        existing(str(linked / "gone.svs"))


def test_with_follow_links_each_folder_is_searched_once(linked):
    found = read_slides(str(linked), follow_links=True)
    assert rows_of(found, linked) == {
        "own__one": "own/one.tif",
        "a_file": "a_file.tif",
        "gone": "gone.svs",
        "zz_elsewhere__deep__two": "zz_elsewhere/deep/two.tif",
    }
    assert left_out_of(found, linked)["zz_elsewhere/deep/back"] == (scan.SEARCHED_ALREADY, False)
    assert not any(left.problem for left in found.left_out)


def test_a_pattern_follows_links_where_it_spells_them_or_is_told_to(linked):
    found = read_slides(f"{linked}/**/*.tif")
    assert sorted(rows_of(found, linked).values()) == ["a_file.tif", "own/one.tif"]
    assert left_out_of(found, linked)["zz_elsewhere"] == (scan.LINKED_FOLDER, True)
    followed = read_slides(f"{linked}/**/*.tif", follow_links=True)
    assert sorted(rows_of(followed, linked).values()) == ["a_file.tif", "own/one.tif", "zz_elsewhere/deep/two.tif"]
    assert not any(left.problem for left in followed.left_out)
    spelled = read_slides(f"{linked}/zz_*/**/*.tif")
    assert list(rows_of(spelled, linked).values()) == ["zz_elsewhere/deep/two.tif"]
    twins = read_slides(f"{linked}/*/*.tif")
    assert sorted(rows_of(twins, linked).values()) == ["a_twin/one.tif", "loop/a_file.tif"]
    assert left_out_of(twins, linked)["own/one.tif"] == (scan.SEARCHED_ALREADY, False)


def test_a_pattern(tmp_path, monkeypatch):
    fill(
        tmp_path, {"a.svs": b"", "b/a.svs": b"", "notes.txt": b"", "c/x.dcm": instance(b"1"), "c/y.dcm": instance(b"1")}
    )
    fill(tmp_path, ["m.mrxs", "m/Data.dat"])
    (tmp_path / "hollow").mkdir()
    assert list(rows_of(read_slides(f"{tmp_path}/**/a.svs"), tmp_path)) == ["a", "b__a"]
    whole = read_slides(f"{tmp_path}/**")
    assert rows_of(whole, tmp_path) == {"a": "a.svs", "b__a": "b/a.svs", "c": "c", "m": "m.mrxs"}
    assert left_out_of(whole, tmp_path) == {"notes.txt": (scan.NOT_A_SLIDE, False)}
    flat = read_slides(f"{tmp_path}/*")
    assert rows_of(flat, tmp_path) == {"a": "a.svs", "c": "c", "m": "m.mrxs"}
    assert left_out_of(flat, tmp_path) == {
        "notes.txt": (scan.NOT_A_SLIDE, False),
        "b": (scan.FOLDER_WITHOUT_SLIDES, True),
    }
    assert rows_of(read_slides(f"{tmp_path}/c/*"), tmp_path) == {"c": "c"}
    for nothing in ("*.ndpi", "absent"):
        with pytest.raises(InputError, match="no such manifest, folder or slide, and no file matches it"):
            read_slides(f"{tmp_path}/{nothing}")
    brackets = tmp_path / "[2024]"
    fill(brackets, ["d.svs"])
    monkeypatch.chdir(brackets)
    assert rows_of(read_slides("*.svs"), brackets) == {"d": "d.svs"}


def test_results_of_an_archive_and_zarr_stores_are_no_slides(tmp_path):
    fill(tmp_path, ["a.svs", "out/state.sqlite", "out/results/a.pca.png", "out/cache/x/a.svs", "results/b.svs"])
    fill(tmp_path, ["map.zarr/0.png", "other/zarr.json", "other/c/0.png"])
    found = read_slides(str(tmp_path))
    assert rows_of(found, tmp_path) == {"a": "a.svs", "results__b": "results/b.svs"}
    assert left_out_of(found, tmp_path) == {
        "out/state.sqlite": (scan.NOT_A_SLIDE, False),
        "out/results": (scan.OWN_RESULTS, False),
        "out/cache": (scan.OWN_RESULTS, False),
        "map.zarr": (scan.ZARR, False),
        "other": (scan.ZARR, False),
    }


def test_a_single_slide_is_an_archive_of_one(tmp_path):
    fill(tmp_path, {"a.svs": b"", "bare": TIFF, "d/x.dcm": instance(b"1"), "d/y.dcm": instance(b"2")})
    for name, slide_id in (("a.svs", "a"), ("bare", "bare"), ("d/x.dcm", "x"), ("d/y.dcm", "y")):
        assert rows_of(read_slides(str(tmp_path / name)), tmp_path) == {slide_id: name}


def test_a_file_that_is_neither_is_told_what_it_is(tmp_path):
    fill(tmp_path, {"list.txt": b"a.svs\nb.svs\n"})
    with pytest.raises(InputError, match=r"list\.txt: it is there, but neither a manifest .* nor a slide") as error:
        read_slides(str(tmp_path / "list.txt"))
    assert "call it .csv" in str(error.value)
    with pytest.raises(InputError, match=r"no slides \(left out: 1 not a slide by content\); give a manifest"):
        read_slides(str(tmp_path))
    assert Path(tmp_path, "list.txt").exists()
