"""Slides elsewhere: fetched whole, once, and within bounds."""

import asyncio
import functools
import http.server
import os
import threading
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
from m2ost_client import InputError
from m2ost_client.archive import read_slides
from m2ost_client.archive.storage import SIZE_ONLY, Staging, StorageError, matches, source_version


@pytest.fixture
def served(tmp_path):
    """A folder, and its address over HTTP."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def stage(staging, *locations, hold=None):
    """Stage all at a time; what was in each copy."""

    async def one(location):
        async with staging.stage(location) as (path, _):
            if hold is not None:
                hold(staging)
            await asyncio.sleep(0.05)
            return path.name, path.read_bytes()

    async def all_of_them():
        return await asyncio.gather(*(one(location) for location in locations))

    return asyncio.run(all_of_them())


def test_from_http_memory_and_files(served, tmp_path):
    folder, url = served
    data = bytes(range(256)) * 100
    (folder / "a b.svs").write_bytes(data)
    with fsspec.open("memory://bucket/c.svs", "wb") as stream:
        stream.write(data[:999])
    staging = Staging(tmp_path / "cache", 1 << 20)
    staging.sweep()
    found = stage(staging, f"{url}/a%20b.svs", "memory://bucket/c.svs", f"file://{folder}/a b.svs")
    assert [content for _, content in found] == [data, data[:999], data]
    assert [name for name, _ in found] == ["a_20b.svs", "c.svs", "a b.svs"]
    assert list((tmp_path / "cache").iterdir()) == [], "nobody uses them any more"
    assert len(data) <= staging.peak_bytes <= 2 * len(data) + 999


def test_no_more_bytes_than_the_limit_and_each_file_once(served, tmp_path):
    folder, url = served
    for i in range(6):
        (folder / f"{i}.svs").write_bytes(bytes([i]) * 1000)
    staging = Staging(tmp_path / "cache", 2500)
    staging.sweep()
    most = 0

    def measure(_):
        """Files that go meanwhile are not counted."""
        nonlocal most
        there = 0
        for folder, _, names in os.walk(tmp_path / "cache"):
            for name in names:
                with suppress(FileNotFoundError):
                    there += Path(folder, name).stat().st_size
        most = max(most, there)

    found = stage(staging, *(f"{url}/{i % 6}.svs" for i in range(12)), hold=measure)
    assert [content[0] for _, content in found] == [i % 6 for i in range(12)]
    assert 1000 <= most <= staging.peak_bytes <= 2500
    (folder / "big.svs").write_bytes(b"x" * 2501)
    with pytest.raises(StorageError, match=r"2,501 bytes, and the cache holds 2,500; give a larger --cache-gib"):
        stage(staging, f"{url}/big.svs")


def test_a_killed_run_leaves_whole_copies_and_no_halves(served, tmp_path):
    folder, url = served
    (folder / "a.svs").write_bytes(b"slide")
    locations = f"file://{folder}/a.svs", f"{url}/a.svs"
    versions = [source_version(location) for location in locations]
    assert [version.startswith(SIZE_ONLY) for version in versions] == [False, True], "that server tells no etag"
    cache = tmp_path / "cache"
    copies = [cache / version[:32] / "a.svs" for version in versions]
    half = cache / "feed" / "b.svs.part"
    for path in (*copies, half):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"SLIDE")
    staging = Staging(cache, 1 << 20)
    staging.sweep()
    assert [path.exists() for path in (*copies, half)] == [True, False, False]
    assert [data for _, data in stage(staging, *locations)] == [b"SLIDE", b"slide"], "one is not fetched again"


def test_what_cannot_be_fetched_is_named(served, tmp_path):
    _, url = served
    staging = Staging(tmp_path / "cache", 1 << 20)
    staging.sweep()
    for location, words in (
        (f"{url}/absent.svs", "absent.svs: cannot be fetched: FileNotFoundError"),
        ("http://127.0.0.1:9/a.svs", "cannot be fetched"),
        ("nowhere://a.svs", "pip install 'm2ost-triton"),
    ):
        with pytest.raises(InputError, match=words):
            stage(staging, location)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_version_follows_the_content(tmp_path):
    path = tmp_path / "a.svs"
    path.write_bytes(b"one")
    before = source_version(path.as_uri())
    assert source_version(path.as_uri()) == before
    path.write_bytes(b"other")
    assert source_version(path.as_uri()) != before


def test_a_pattern_of_urls(tmp_path):
    for name in ("x.svs", "y.svs"):
        with fsspec.open(f"memory://archive/{name}", "wb") as stream:
            stream.write(b"slide")
    assert [row.slide_id for row in read_slides("memory://archive/*.svs").rows] == ["x", "y"]
    with pytest.raises(InputError, match="nothing matches"):
        matches("memory://archive/*.ndpi")
