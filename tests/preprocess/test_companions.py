"""The files that a slide leads its readers to lie under the root, are known before any is opened, and identify it."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from m2ost_contract import ENV_ALLOWED_FORMATS
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.errors import SlideNotFound, UnreadableSlide
from m2ost_preprocess.readers import companions, open_slide, select
from m2ost_preprocess.slides import SlideRoots, fingerprint, slide_files

from tests.compat import evil

OPENED = re.compile(r'\b(?:open|openat|openat2|creat)\([^"]*"([^"]*)"')


@pytest.fixture
def folders(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    return inside, outside


def names_of(inside, paths):
    return [f"wsi/{path.relative_to(inside)}" for path in paths]


def opened_by(script, *arguments):
    """Files that a Python script opened, or tried to."""
    if shutil.which("strace") is None:
        pytest.skip("no strace here, which tells the files that a process opens")
    command = ["strace", "-f", "-qq", "-s", "4096", "-e", "trace=open,openat,openat2,creat", "-o", "/dev/stderr"]
    done = subprocess.run(
        [*command, sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [os.path.realpath(name) for name in OPENED.findall(done.stderr)]


def test_slides_that_lead_out_are_refused_before_anything_outside_is_opened(folders):
    inside, outside = folders
    names = names_of(inside, evil.escapes(inside, outside))
    roots = SlideRoots({"wsi": inside})
    for name in names:
        with pytest.raises(SlideNotFound, match=f"{re.escape(name)}: leads out of its slide root"):
            roots.resolve(name)
    script = (
        "import sys\nfrom pathlib import Path\nfrom m2ost_preprocess.errors import SlideNotFound\n"
        "from m2ost_preprocess.slides import SlideRoots\nroots = SlideRoots({'wsi': Path(sys.argv[1])})\n"
        "for name in sys.argv[2:]:\n    try:\n        roots.resolve(name)\n    except SlideNotFound:\n"
        "        continue\n    sys.exit(name)\n"
    )
    opened = opened_by(script, inside, *names)
    assert any(name.startswith(str(inside)) for name in opened)
    assert [name for name in opened if name.startswith(str(outside))] == []


def test_the_evil_slides_do_lead_openslide_out(folders):
    inside, outside = folders
    script = (
        "import openslide, sys\nfor path in sys.argv[1:]:\n    try:\n        openslide.OpenSlide(path)\n"
        "    except openslide.OpenSlideError:\n        pass\n"
    )
    evil.escapes(inside, outside)
    chosen = [inside / name for name in ("up.vms", "plain.txt", "index.mrxs", "late series/a.dcm", "a.png")]
    for path in chosen:
        assert [name for name in opened_by(script, path) if name.startswith(str(outside))], path


@pytest.mark.parametrize("source", ["svs", "pyramid", "dicom", "vms", "mrxs", "png"])
def test_readers_open_no_other_files_than_those_that_are_looked_at(request, folders, source):
    inside, _ = folders
    if source in ("svs", "pyramid", "dicom"):
        given = request.getfixturevalue(source)
        path = inside / given.name
        (shutil.copytree if given.is_dir() else shutil.copy)(given, path)
    elif source == "png":
        path = inside / "a.png"
        evil.Image.new("RGB", (64, 64)).save(path)
    else:
        path = getattr(evil, source)(inside / f"a.{source}")
    (inside / "other.jpg").touch()
    script = (
        "import sys\nfrom pathlib import Path\nfrom m2ost_preprocess.errors import UnreadableSlide\n"
        "from m2ost_preprocess.readers import native_errors, open_slide\nnative_errors.install()\n"
        "try:\n    open_slide(Path(sys.argv[1])).thumbnail(64)\nexcept UnreadableSlide:\n    pass\n"
    )
    found = {name for name in opened_by(script, path) if name.startswith(str(inside)) and os.path.exists(name)}
    looked_at = {os.path.realpath(file) for file in companions.opened_files(path)}
    assert str(path) in found
    assert found <= looked_at
    assert found - {str(path)} <= {str(file) for file in slide_files(path)}


def test_a_pipe_beside_a_slide_blocks_nobody(folders):
    inside, _ = folders
    paths = evil.blockers(inside)
    with pytest.raises(SlideNotFound, match="no such file"):
        SlideRoots({"wsi": inside}).resolve(f"wsi/{paths.pop().name}")
    for name, path in zip(names_of(inside, paths), paths, strict=True):
        for look in (lambda name=name: SlideRoots({"wsi": inside}).resolve(name), lambda path=path: slide_files(path)):
            with pytest.raises(UnreadableSlide, match="beside it is a pipe, socket or device"):
                look()
    with Decoder(describe_timeout_s=60) as decoder, pytest.raises(UnreadableSlide, match="beside it is a pipe"):
        decoder.open(paths[-2])


def test_a_slide_of_several_files_is_read_anew_when_one_is_replaced(folders):
    inside, _ = folders
    path = evil.vms(inside / "a.vms")
    assert SlideRoots({"wsi": inside}).resolve("wsi/a.vms") == path
    assert slide_files(path) == [path, inside / "image.jpg", inside / "map.jpg"]
    before = fingerprint(path)
    with Decoder(threads=0) as decoder:
        first = decoder.read(path, 0, 0, 64, 64)
        evil.jpeg(inside / "image.jpg", (10, 200, 10))
        second = decoder.read(path, 0, 0, 64, 64)
    assert fingerprint(path) != before
    assert (first[..., 0] > 150).all()
    assert (second[..., 0] < 100).all()
    np.testing.assert_array_equal(second, open_slide(path).read(0, 0, 64, 64))


def test_a_file_rewritten_in_place_under_its_old_time_is_read_anew(folders):
    inside, _ = folders
    path = inside / "a.png"
    evil.Image.new("RGB", (64, 64), (1, 2, 3)).save(path, compress_level=0)
    before = path.stat()
    with Decoder(threads=0) as decoder:
        assert decoder.read(path, 5, 5, 1, 1).tolist() == [[[1, 2, 3]]]
        evil.Image.new("RGB", (64, 64), (4, 5, 6)).save(path, compress_level=0)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        now = path.stat()
        assert (now.st_ino, now.st_size, now.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
        assert decoder.read(path, 5, 5, 1, 1).tolist() == [[[4, 5, 6]]]


def test_files_named_but_absent_are_left_to_the_reader(folders):
    inside, _ = folders
    path = evil.vms(inside / "a.vms", text=evil.VMS + "OptimisationFile=\nMacroImage=absent.jpg\n")
    assert SlideRoots({"wsi": inside}).resolve("wsi/a.vms") == path
    with pytest.raises(UnreadableSlide, match="OpenSlide cannot open it"):
        open_slide(path)


def test_lists_that_are_too_long_are_refused(folders, monkeypatch):
    inside, _ = folders
    path = evil.mrxs(inside / "a.mrxs", slidedat=evil.SLIDEDAT + "#" * (1 << 20))
    with pytest.raises(UnreadableSlide, match=r"a\.mrxs: its Slidedat\.ini is larger than 1 MiB"):
        slide_files(path)
    monkeypatch.setattr(companions, "MAX_FOLDER_FILES", 2)
    with pytest.raises(UnreadableSlide, match="more than 2 files beside it"):
        slide_files(path)


def test_a_format_of_which_nobody_knows_the_files_must_be_allowed_by_name(svs, monkeypatch):
    monkeypatch.setattr(select, "KNOWN_VENDORS", companions.KNOWN_VENDORS - {"aperio"})
    with pytest.raises(UnreadableSlide, match=r"format aperio is not known here.*M2OST_ALLOWED_FORMATS=aperio"):
        open_slide(svs)
    monkeypatch.setenv(ENV_ALLOWED_FORMATS, "other,aperio")
    assert open_slide(svs).vendor == "aperio"
