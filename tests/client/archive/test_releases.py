"""Releases out of object storage: whole and as exported, or refused."""

import json
from dataclasses import replace

import fsspec
import pytest
from m2ost_client.archive.releases import fetch_release
from m2ost_client.archive.storage import StorageError
from m2ost_contract import Manifest, ReleaseError, sha256_file

from tests.support.releases import ENGINE

URL = "memory://bucket/release"


@pytest.fixture
def stored(tmp_path):
    """A release of two files in a storage, and the sha256 of its manifest."""
    folder = tmp_path / "made"
    (folder / "m2ost" / "1").mkdir(parents=True)
    (folder / "m2ost" / "1" / "model.onnx").write_bytes(b"a graph")
    (folder / "m2ost_slide" / "1").mkdir(parents=True)
    for model in ("m2ost", "m2ost_slide"):
        (folder / model / "config.pbtxt").write_text("a config")
    paths = ("m2ost/1/model.onnx", "m2ost/config.pbtxt", "m2ost_slide/config.pbtxt")
    files = {path: sha256_file(folder / path) for path in paths}
    Manifest(replace(ENGINE, onnx_sha256=files["m2ost/1/model.onnx"]), {}, {}, {}, files).write(folder)
    storage = fsspec.filesystem("memory")
    storage.put(str(folder), "/bucket/release", recursive=True)
    yield storage, sha256_file(folder / "manifest.json")
    storage.rm("/bucket", recursive=True)


def test_a_release_comes_whole_and_once(stored, tmp_path):
    storage, sha256 = stored
    release = fetch_release(URL, tmp_path / "release", sha256.upper())
    assert release.onnx.read_bytes() == b"a graph"
    assert (release.folder / "m2ost_slide" / "1").is_dir(), "Triton wants it, and storages have no empty folders"
    storage.pipe("/bucket/release/m2ost/1/model.onnx", b"another")
    assert fetch_release(URL, tmp_path / "release", sha256) == release
    assert not list(tmp_path.glob(".release*"))


def test_what_is_not_as_exported_is_refused_and_nothing_is_left(stored, tmp_path):
    storage, sha256 = stored
    with pytest.raises(ReleaseError, match=rf"sha256 of its manifest.json is {sha256}, not '0000'"):
        fetch_release(URL, tmp_path / "release", "0000")
    storage.pipe("/bucket/release/m2ost/config.pbtxt", b"a c0nfig")
    with pytest.raises(ReleaseError, match=r"m2ost/config\.pbtxt: truncated, changed or swapped"):
        fetch_release(URL, tmp_path / "release", sha256)
    storage.rm("/bucket/release/m2ost/config.pbtxt")
    with pytest.raises(StorageError, match=r"config\.pbtxt: cannot be fetched"):
        fetch_release(URL, tmp_path / "release", sha256)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_manifest_that_names_a_file_outside_is_refused(stored, tmp_path):
    storage, _ = stored
    raw = json.loads(storage.cat("/bucket/release/manifest.json"))
    raw["files"]["../../escaped"] = "0" * 64
    storage.pipe("/bucket/release/manifest.json", json.dumps(raw).encode())
    storage.get("/bucket/release/manifest.json", str(tmp_path / "manifest.json"))
    with pytest.raises(ReleaseError, match=r"names '\.\./\.\./escaped', a file outside"):
        fetch_release(URL, tmp_path / "release", sha256_file(tmp_path / "manifest.json"))


def test_a_release_that_changed_on_the_machine_is_refused(stored, tmp_path):
    _, sha256 = stored
    (fetch_release(URL, tmp_path / "release", sha256).folder / "m2ost" / "config.pbtxt").write_text("changed")
    with pytest.raises(ReleaseError, match="a release never changes"):
        fetch_release(URL, tmp_path / "release", sha256)


def test_a_copy_that_lost_empty_folders_is_told(stored, tmp_path):
    _, sha256 = stored
    release = fetch_release(URL, tmp_path / "release", sha256)
    (release.folder / "m2ost_slide" / "1").rmdir()
    with pytest.raises(ReleaseError, match=r"m2ost_slide/1: no such folder, .* make it anew"):
        release.check()
