"""A slide name from a request is hostile until it is resolved under an allowed root."""

import os
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest
from m2ost_preprocess.errors import SlideNotFound
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.readers.dicom_series import series_uid
from m2ost_preprocess.slides import SlideRoots, fingerprint, slide_files


@pytest.fixture
def roots(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "deep er").mkdir(parents=True)
    outside.mkdir()
    (inside / "a.svs").touch()
    (inside / "deep er" / "b ü.svs").touch()
    (outside / "secret.svs").touch()
    (inside / "link-in.svs").symlink_to(inside / "a.svs")
    (inside / "link-out.svs").symlink_to(outside / "secret.svs")
    (inside / "folder-out").symlink_to(outside)
    (inside / "loop").symlink_to(inside / "loop")
    os.mkfifo(inside / "pipe.svs")
    return SlideRoots({"wsi": inside})


@pytest.mark.parametrize("name", ["wsi/a.svs", "wsi/deep er/b ü.svs", "wsi/link-in.svs"])
def test_slides_under_a_root_are_found(roots, name):
    assert roots.resolve(name).is_file()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "wsi",
        "wsi/",
        "a.svs",
        "/etc/passwd",
        "wsi//etc/passwd",
        "wsi/../outside/secret.svs",
        "wsi/deep er/../../outside/secret.svs",
        "wsi/./a.svs",
        "../outside/secret.svs",
        "wsi/a.svs\0.txt",
        "wsi/link-out.svs",
        "wsi/folder-out/secret.svs",
        "wsi/loop",
        "wsi/pipe.svs",
        "wsi/absent.svs",
        "other/a.svs",
        "wsi/" + "x" * 5000,
        "wsi/\udcff.svs",
    ],
)
def test_everything_else_is_refused_by_name(roots, name):
    with pytest.raises(SlideNotFound) as error:
        roots.resolve(name)
    assert "secret" not in str(error.value) or "secret" in name
    assert len(str(error.value)) < 500


def test_roots_must_exist_and_have_plain_names(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        SlideRoots({"wsi": tmp_path / "absent"})
    for name in ("", "a/b", ".."):
        with pytest.raises(ValueError, match="plain word"):
            SlideRoots({name: tmp_path})


def test_roots_travel_through_the_environment(roots, monkeypatch):
    for key, value in roots.to_environment().items():
        monkeypatch.setenv(key, value)
    assert SlideRoots.from_environment() == roots


def test_the_fingerprint_is_of_the_content(svs, tmp_path):
    copy = tmp_path / "copy.svs"
    data = bytearray(svs.read_bytes())
    copy.write_bytes(data)
    assert fingerprint(copy) == fingerprint(svs)
    data[100] ^= 1
    copy.write_bytes(data)
    assert fingerprint(copy) != fingerprint(svs)
    copy.write_bytes(data[:-1])
    assert fingerprint(copy) != fingerprint(svs)


def test_the_fingerprint_of_a_dicom_slide_covers_all_its_files(dicom, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for instance in dicom.glob("*.dcm"):
        (copy / instance.name).write_bytes(instance.read_bytes())
    assert fingerprint(copy) == fingerprint(dicom)
    sorted(copy.glob("*.dcm"))[0].rename(copy / "renamed.dcm")
    assert fingerprint(copy) == fingerprint(dicom)
    last = sorted(copy.glob("*.dcm"))[-1]
    last.write_bytes(last.read_bytes() + b"\0")
    assert fingerprint(copy) != fingerprint(dicom)


def element(tag, value, vr=b"UI"):
    """A DICOM data element; explicit VR, or implicit where none is given."""
    number = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    if vr is None:
        return number + len(value).to_bytes(4, "little") + value
    if vr == b"SQ":
        return number + vr + bytes(2) + b"\xff\xff\xff\xff" + value + b"\xfe\xff\xdd\xe0" + bytes(4)
    return number + vr + len(value).to_bytes(2, "little") + value


def instance(series, *, explicit=True, before=b""):
    """The start of a DICOM file of a series."""
    syntax = b"1.2.840.10008.1.2.1" if explicit else b"1.2.840.10008.1.2"
    own = element(0x0020000E, series, b"UI" if explicit else None)
    return bytes(128) + b"DICM" + element(0x00020010, syntax) + before + own + bytes(64)


def test_a_server_that_sees_very_many_slides_does_not_remember_each(tmp_path):
    names = [str(tmp_path / f"{i}.jpg") for i in range(500)]
    for name in names:
        Path(name).touch()
    slide_files(Path(names[0]))
    tracemalloc.start()
    for name in names:
        slide_files(Path(name))
    remembered, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert remembered < 50 * len(names), "bytes; a path alone takes 500"


def test_the_series_of_an_instance_is_its_own_not_that_of_another_it_refers_to(tmp_path, dicom):
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + element(0x0020000E, b"9.9") + b"\xfe\xff\x0d\xe0" + bytes(4)
    path = tmp_path / "a"
    for data, expected in (
        (instance(b"1.2\0"), b"1.2"),
        (instance(b"1.2", explicit=False), b"1.2"),
        (instance(b"1.2", before=element(0x00081115, item, b"SQ")), b"1.2"),
        (instance(b"1.2")[:-70], b""),
        (bytes(128) + b"DICM" + b"\xff" * 500, b""),
        (instance(b"1.2")[4:], None),
        (b"", None),
    ):
        path.write_bytes(data)
        assert series_uid(path) == expected
    uid = b"1.2.276.0.7230010.3.1.3.2425734838.4124713.1626788322.499658"
    assert {series_uid(file) for file in dicom.iterdir()} == {uid}


def copy_slide(dicom, folder, name="{}", last_digit=b"8"):
    folder.mkdir(exist_ok=True)
    for file in dicom.iterdir():
        data = file.read_bytes().replace(b"1626788322.499658", b"1626788322.49965" + last_digit)
        (folder / name.format(file.name)).write_bytes(data)


def test_two_series_in_one_folder_are_two_slides(dicom, tmp_path):
    flat = tmp_path / "flat"
    copy_slide(dicom, tmp_path / "one", last_digit=b"1")
    for digit in (b"1", b"2"):
        copy_slide(dicom, flat, f"{digit.decode()}-{{}}", digit)
    (flat / "notes.dcm").touch()
    found = {digit: fingerprint(flat / f"{digit}-level-0-frames-0-30.dcm") for digit in "12"}
    assert found["1"] == fingerprint(tmp_path / "one") != found["2"]
    for digit in "12":
        files = slide_files(flat / f"{digit}-level-3-frames-0-1.dcm")
        assert files == sorted(flat.glob(f"{digit}-*.dcm"))
        assert len(files) == len(open_slide(files[0]).levels) == 12


@pytest.mark.parametrize("rename", [str.upper, lambda name: name.removesuffix(".dcm")], ids=["upper case", "no suffix"])
def test_instances_belong_together_whatever_they_are_called(dicom, tmp_path, rename):
    copy_slide(dicom, tmp_path / "copy")
    for file in (tmp_path / "copy").iterdir():
        file.rename(file.with_name(rename(file.name)))
    assert fingerprint(tmp_path / "copy" / rename("level-0-frames-0-30.dcm")) == fingerprint(dicom)


def test_a_folder_of_upper_case_instances_is_a_slide(dicom, tmp_path):
    copy_slide(dicom, tmp_path / "copy")
    for file in (tmp_path / "copy").iterdir():
        file.rename(file.with_name(file.name.upper()))
    assert fingerprint(tmp_path / "copy") == fingerprint(dicom)


def test_the_data_files_of_an_mrxs_slide_are_part_of_it(tmp_path):
    slide, data = tmp_path / "a.mrxs", tmp_path / "a"
    data.mkdir()
    for file in (slide, data / "Slidedat.ini", data / "Data0000.dat"):
        file.write_bytes(b"same")
    assert slide_files(slide) == [slide, data / "Data0000.dat", data / "Slidedat.ini"]
    before = fingerprint(slide)
    (data / "Data0000.dat").write_bytes(b"else")
    assert fingerprint(slide) != before


@pytest.mark.parametrize("name", ["dicom", "dicom/a.dcm", "dicom/bare", "dicom/c.mrxs"])
def test_no_file_of_a_slide_may_lead_out(roots, name):
    inside = roots.roots["wsi"]
    folder, secret = inside / "dicom", inside.parent / "outside" / "secret.svs"
    (folder / "c").mkdir(parents=True)
    for file in ("a.dcm", "bare"):
        (folder / file).write_bytes(instance(b"1.2"))
    (folder / "c.mrxs").touch()
    secret.write_bytes(instance(b"1.3"))
    assert roots.resolve(f"wsi/{name}") == inside / name
    link = folder / "c" / "Data0000.dat" if name.endswith("mrxs") else folder / "b"
    link.symlink_to(secret)
    with pytest.raises(SlideNotFound, match="leads out"):  # of another series: OpenSlide opens it to see that
        roots.resolve(f"wsi/{name}")
    secret.write_bytes(instance(b"1.2"))
    with pytest.raises(SlideNotFound, match="leads out"):
        roots.resolve(f"wsi/{name}")


def test_names_beyond_ascii_are_found_where_python_takes_file_names_for_ascii(roots):
    folder = roots.roots["wsi"] / "Gewebe ü"
    folder.mkdir()
    for name in ("é.dcm", "è.dcm"):
        (folder / name).write_bytes(instance(b"1.2"))
    code = (
        "import sys; from m2ost_preprocess.slides import SlideRoots, fingerprint; names = ['wsi/Gewebe ü', "
        "'wsi/Gewebe ü/é.dcm']; assert sys.getfilesystemencoding() == 'ascii'; roots = SlideRoots.from_environment();"
        "paths = [roots.resolve(name) for name in names];"
        "sys.stdout.buffer.write('\\n'.join([*map(str, paths), *map(fingerprint, paths)]).encode())"
    ).encode("ascii", "backslashreplace")
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **roots.to_environment()}
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, stdout=subprocess.PIPE, check=True
    )
    paths = [folder, folder / "é.dcm"]
    assert found.stdout.decode().splitlines() == [*map(str, paths), *map(fingerprint, paths)]


def test_a_companion_folder_may_not_lead_out(roots):
    inside = roots.roots["wsi"]
    (inside / "d.mrxs").touch()
    (inside / "d").symlink_to(inside.parent / "outside")
    with pytest.raises(SlideNotFound, match="leads out"):
        roots.resolve("wsi/d.mrxs")


def test_an_inflating_dicom_header_is_no_part_of_a_slide(tmp_path):
    bomb = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    deflated = bomb.compress(bytes(200 << 20)) + bomb.flush()
    (tmp_path / "a").write_bytes(bytes(128) + b"DICM" + element(0x00020010, b"1.2.840.10008.1.2.1.99") + deflated)
    tracemalloc.start()
    assert series_uid(tmp_path / "a") == b""
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20 << 20
