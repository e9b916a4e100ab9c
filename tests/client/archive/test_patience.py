"""A storage that stalls, cuts files short, is busy or changes them: it is waited for within bounds."""

import time
from dataclasses import dataclass, field
from io import BytesIO

import fsspec
import pytest
from m2ost_client.archive import storage
from m2ost_client.archive.patience import Patience
from m2ost_client.archive.storage import StorageError, download, source_version
from m2ost_client.errors import OutputError

HURRIED = Patience(timeout_s=0.2, pauses_s=(0.01, 0.02, 0.04))
DATA = bytes(range(256)) * 40
BLOCK_BYTES = 1024


@dataclass
class Behaviour:
    """What the storage holds, and what it does at a position of a file: once for each entry, or for ever."""

    data: bytes = DATA
    size_bytes: int = len(DATA)
    etag: str | None = "one"
    listed_etag: str | None = None
    seekable: bool = True
    at: dict[int, list] = field(default_factory=dict)
    opened: int = 0
    read: list[int] = field(default_factory=list)


class Faulty(fsspec.AbstractFileSystem):
    """Files whose reading goes as a test says; every name is one."""

    protocol = "faulty"
    cachable = False
    behaviour = Behaviour()

    def info(self, path, **options):
        self._meet(-1)
        etag = self.behaviour.listed_etag or self.behaviour.etag
        return {"name": path, "size": self.behaviour.size_bytes, "type": "file", "etag": etag}

    def invalidate_cache(self, path=None):
        self.behaviour.listed_etag = None

    def _open(self, path, mode="rb", **options):
        self.behaviour.opened += 1
        return Body(self)

    def _meet(self, position):
        faults = self.behaviour.at.get(position, [])
        if faults:
            fault = faults[0] if faults[-1] is ... else faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            fault()


class Body(BytesIO):
    def __init__(self, storage):
        super().__init__(storage.behaviour.data)
        self.storage = storage

    def seek(self, position, whence=0):
        if not self.storage.behaviour.seekable:
            raise ValueError("a stream")
        return super().seek(position, whence)

    def read(self, size=-1):
        position = self.tell()
        self.storage.behaviour.read.append(position)
        self.storage._meet(position)
        return super().read(size)


@pytest.fixture
def behaviour(monkeypatch):
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    monkeypatch.setattr(Faulty, "behaviour", Behaviour())
    monkeypatch.setattr(storage, "_BLOCK_BYTES", BLOCK_BYTES)
    return Faulty.behaviour


def stall():
    time.sleep(1)


def test_a_stall_ends_by_its_deadline_and_names_url_and_seconds(behaviour, tmp_path):
    behaviour.at[2048] = [stall, ...]
    began = time.monotonic()
    with pytest.raises(
        StorageError, match=r"^faulty://a\.svs: cannot be fetched: nothing came for 0\.2 s \(4 tries\)$"
    ):
        download("faulty://a.svs", tmp_path / "a.svs", patience=HURRIED)
    assert 4 * 0.2 <= time.monotonic() - began < 4 * 1, "none waited for the storage"
    assert not (tmp_path / "a.svs").exists()


def test_a_stall_before_anything_is_told_ends_too(behaviour):
    behaviour.at[-1] = [stall, ...]
    with pytest.raises(StorageError, match=r"nothing came for 0\.2 s \(4 tries\)"):
        source_version("faulty://a.svs", patience=HURRIED)


@pytest.mark.parametrize(
    ("seekable", "etag", "read_again"),
    [(True, "one", False), (False, "one", True), (True, None, True)],
    ids=["goes on", "a stream", "perhaps another file"],
)
def test_what_passes_heals(behaviour, tmp_path, seekable, etag, read_again):
    behaviour.seekable, behaviour.etag = seekable, etag
    behaviour.at = {-1: [OSError("busy")], 2048: [stall, OSError("cut")], 4096: [ConnectionResetError()]}
    download("faulty://a.svs", tmp_path / "a.svs", patience=HURRIED)
    assert (tmp_path / "a.svs").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["a.svs"]
    assert behaviour.opened == 4
    assert (behaviour.read.count(0) > 1) == read_again


def test_tries_are_counted_anew_where_something_came(behaviour, tmp_path):
    for position in range(0, len(DATA), BLOCK_BYTES):
        behaviour.at[position] = [OSError("cut")] * 3
    download("faulty://a.svs", tmp_path / "a.svs", patience=HURRIED)
    assert (tmp_path / "a.svs").read_bytes() == DATA


def test_a_stream_that_is_always_cut_comes_to_an_end(behaviour, tmp_path):
    behaviour.seekable = False
    behaviour.at[4096] = [OSError("cut"), ...]
    with pytest.raises(StorageError, match=r"OSError: cut \(4 tries\)"):
        download("faulty://a.svs", tmp_path / "a.svs", patience=HURRIED)


class Answered(Exception):
    def __init__(self, status):
        super().__init__(f"answered {status}")
        self.status = status


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (PermissionError("forbidden"), 1),
        (FileNotFoundError("gone"), 1),
        (Answered(403), 1),
        (Answered(429), 4),
        (Answered(503), 4),
    ],
    ids=str,
)
def test_only_what_may_pass_is_tried_again(behaviour, tmp_path, error, tries):
    behaviour.at[0] = [error, ...]
    with pytest.raises(StorageError, match=rf"a\.svs: cannot be fetched: {type(error).__name__}: {error}"):
        download("faulty://a.svs", tmp_path / "a.svs", patience=HURRIED)
    assert behaviour.opened == tries


def test_an_end_that_comes_too_soon_is_not_the_end(behaviour, tmp_path):
    behaviour.size_bytes, behaviour.data = len(DATA), DATA[:3000]
    with pytest.raises(StorageError, match=r"3,000 of 10,240 bytes came \(4 tries\)"):
        download("faulty://a.svs", tmp_path / "a.svs", patience=HURRIED)


@pytest.mark.parametrize("position", [2048, len(DATA)], ids=["in the middle", "at the end"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_file_that_is_replaced_is_told_and_its_versions_never_mix(behaviour, tmp_path, position, interrupted):
    def replace():
        behaviour.data, behaviour.etag = DATA[::-1], "another"
        if interrupted:
            raise OSError("cut")

    behaviour.at[position] = [replace]
    with pytest.raises(StorageError, match=r"a\.svs: became another file while it was fetched; run the same command"):
        download("faulty://a.svs", tmp_path / "a.svs", patience=HURRIED)
    assert not (tmp_path / "a.svs").exists()
    download("faulty://a.svs", tmp_path / "a.svs", patience=HURRIED)
    assert (tmp_path / "a.svs").read_bytes() == DATA[::-1]


def test_a_version_that_is_not_the_one_meant_is_not_fetched(behaviour, tmp_path):
    version = source_version("faulty://a.svs")
    behaviour.etag = "another"
    with pytest.raises(StorageError, match="became another file"):
        download("faulty://a.svs", tmp_path / "a.svs", version=version, patience=HURRIED)
    assert behaviour.opened == 0


def test_a_listing_of_before_is_not_believed_where_a_file_is_fetched(behaviour, tmp_path):
    behaviour.listed_etag = "of the listing"
    listed = source_version("faulty://a.svs")
    with pytest.raises(StorageError, match="became another file"):
        download("faulty://a.svs", tmp_path / "a.svs", version=listed, patience=HURRIED)
    assert source_version("faulty://a.svs", fresh=True) != listed


def test_a_copy_that_cannot_be_written_is_not_the_storages_fault(behaviour, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another --cache"):
        download("faulty://a.svs", tmp_path / "file" / "a.svs", patience=HURRIED)
