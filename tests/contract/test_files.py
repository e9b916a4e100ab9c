"""Files and folders that are whole under their names, or absent."""

import os
from contextlib import suppress

import pytest
from m2ost_contract import complete_file, complete_folder, write_complete


@pytest.fixture
def synced(monkeypatch):
    """Paths that were seen on the disk, in order, among the renamings."""
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("put", os.fspath(b))), replace(a, b))[1])
    return events


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_its_name_after(tmp_path, synced):
    write_complete(tmp_path / "a.json", "µm")
    content, put, names = synced
    assert content.startswith(str(tmp_path / ".a.json."))
    assert put == ("put", str(tmp_path / "a.json"))
    assert names == str(tmp_path)
    assert (tmp_path / "a.json").read_bytes() == "µm".encode()


def test_every_file_of_a_folder_is_on_the_disk_before_it_gets_its_name(tmp_path, synced):
    with complete_folder(tmp_path / "deep" / "release") as scratch:
        (scratch / "1").mkdir()
        for name in ("a", "1/b"):
            (scratch / name).write_text(name)
    put = synced.index(("put", str(tmp_path / "deep" / "release")))
    assert {path.rpartition("/")[2] for path in synced[:put]} == {"a", "b"}
    assert synced[put + 1 :] == [str(tmp_path / "deep")]


def test_what_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    (tmp_path / "a.json").write_text("before")
    with suppress(ZeroDivisionError), complete_file(tmp_path / "a.json") as scratch:
        scratch.write_text("half")
        raise ZeroDivisionError
    with suppress(ZeroDivisionError), complete_folder(tmp_path / "release"):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "before"


def test_what_is_written_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        write_complete(tmp_path / "a", "")
        with complete_folder(tmp_path / "b"):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o750]


def test_a_folder_that_is_there_is_never_overwritten(tmp_path):
    with pytest.raises(FileExistsError, match="never overwritten"), complete_folder(tmp_path):
        pytest.fail("nothing may be made")
