"""Slides elsewhere: fetched whole, once, and within bounds."""

import asyncio
import functools
import http.server
import multiprocessing
import os
import re
import shutil
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import fsspec
import pytest
from m2ost_client import InputError
from m2ost_client.archive import Patience, read_slides
from m2ost_client.archive.staging import Staging
from m2ost_client.archive.storage import SIZE_ONLY, StorageError, source_version
from m2ost_contract import install_command


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
    staging.open()
    found = stage(staging, f"{url}/a%20b.svs", "memory://bucket/c.svs", f"file://{folder}/a b.svs")
    assert [content for _, content in found] == [data, data[:999], data]
    assert [name for name, _ in found] == ["a_20b.svs", "c.svs", "a b.svs"]
    staging.close()
    assert list((tmp_path / "cache").iterdir()) == [], "nobody uses them any more"
    assert len(data) <= staging.peak_bytes <= 2 * len(data) + 999


def test_no_more_bytes_than_the_limit_and_each_file_once(served, tmp_path):
    folder, url = served
    for i in range(6):
        (folder / f"{i}.svs").write_bytes(bytes([i]) * 1000)
    staging = Staging(tmp_path / "cache", 2500)
    staging.open()
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


fork = multiprocessing.get_context("fork")
"""A child that has imported everything already; it touches no thread of this process."""


def hold_a_copy(cache, location, answers, go_on):
    """A run that says where its copy lies, and once it may go on, what is in it."""

    async def hold():
        staging = Staging(cache, 1 << 20)
        staging.open()
        async with staging.stage(location) as (copy, _):
            answers.put(copy)
            go_on.wait(30)
            answers.put(copy.read_bytes())
        staging.close()

    asyncio.run(hold())


@pytest.fixture
def other_run():
    """Starts a run in a process of its own that keeps a copy until it is told to go on; (process, answers, go on)."""
    with ExitStack() as stack:

        def start(cache, location):
            answers, go_on = fork.Queue(), fork.Event()
            process = fork.Process(target=hold_a_copy, args=(cache, location, answers, go_on))
            process.start()
            stack.callback(process.kill)
            return process, answers, go_on

        yield start


def test_a_run_that_ends_leaves_the_copies_of_one_that_lives(other_run, tmp_path):
    (tmp_path / "a.svs").write_bytes(b"slide")
    location, cache = f"file://{tmp_path}/a.svs", tmp_path / "cache"
    process, answers, go_on = other_run(cache, location)
    copy = answers.get(timeout=30)
    staging = Staging(cache, 1 << 20)
    staging.open()
    assert [data for _, data in stage(staging, location)] == [b"slide"]
    staging.close()
    assert copy.exists()
    go_on.set()
    assert answers.get(timeout=30) == b"slide"
    process.join(30)
    assert (process.exitcode, list(cache.iterdir())) == (0, [])


def test_a_killed_run_leaves_whole_copies_to_the_next_and_no_halves(served, other_run, tmp_path):
    folder, url = served
    (folder / "a.svs").write_bytes(b"slide")
    locations = f"file://{folder}/a.svs", f"{url}/a.svs"
    certain, unsure = (source_version(location) for location in locations)
    assert (certain.startswith(SIZE_ONLY), unsure.startswith(SIZE_ONLY)) == (False, True), "that server tells no etag"
    cache = tmp_path / "cache"
    killed, answers, _ = other_run(cache, locations[0])
    copy = answers.get(timeout=30)
    killed.kill()
    killed.join()
    own = copy.parents[1]
    copy.write_bytes(b"SLIDE")
    for path in (own / unsure[:32] / "a.svs", own / "feed" / "b.svs.part", cache / "mine" / "notes.txt"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"SLIDE")
    staging = Staging(cache, 1 << 20)
    staging.open()
    assert [data for _, data in stage(staging, *locations)] == [b"SLIDE", b"slide"], "one is not fetched again"
    staging.close()
    assert [path.name for path in cache.iterdir()] == ["mine"], "what is not of a run is nobody's to remove"


def test_a_copy_that_is_asked_for_while_it_goes_is_fetched_anew(tmp_path, monkeypatch):
    (tmp_path / "a.svs").write_bytes(b"slide")
    location = f"file://{tmp_path}/a.svs"
    staging = Staging(tmp_path / "cache", 1 << 20)
    staging.open()
    going, asked = threading.Event(), threading.Event()
    remove = shutil.rmtree

    def slow(path, *arguments):
        going.set()
        asked.wait(0.2)
        remove(path, *arguments)

    async def second():
        await asyncio.to_thread(going.wait)
        async with staging.stage(location) as (copy, _):
            asked.set()
            await asyncio.sleep(0.05)
            return copy.read_bytes()

    async def first():
        async with staging.stage(location):
            pass

    async def both():
        return (await asyncio.gather(first(), second()))[1]

    monkeypatch.setattr(shutil, "rmtree", slow)
    assert asyncio.run(both()) == b"slide"


def test_what_cannot_be_fetched_is_named(served, tmp_path):
    _, url = served
    staging = Staging(tmp_path / "cache", 1 << 20, Patience(pauses_s=()))
    staging.open()
    for location, words in (
        (f"{url}/absent.svs", "absent.svs: cannot be fetched: FileNotFoundError"),
        ("http://127.0.0.1:9/a.svs", "cannot be fetched"),
        ("nowhere://a.svs", re.escape(install_command("archive"))),
    ):
        with pytest.raises(InputError, match=words):
            stage(staging, location)
    staging.close()
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
        read_slides("memory://archive/*.ndpi")


def test_a_pattern_of_urls_names_what_it_leaves_out(tmp_path):
    tiff, text = b"II*\0" + bytes(200), b"slide_id,path\n"
    (tmp_path / "dir").mkdir()
    for name, data in (
        ("a.svs", b""),
        ("bare", tiff),
        ("notes.csv", text),
        ("m.mrxs", b"\xff\xd8\xff"),
        ("dir/one.dcm", b""),
        ("dir/two.dcm", b""),
    ):
        (tmp_path / name).write_bytes(data)
    found = read_slides(f"file://{tmp_path}/**")
    assert [(row.slide_id, row.path) for row in found.rows] == [
        ("a", f"file://{tmp_path}/a.svs"),
        ("bare", f"file://{tmp_path}/bare"),
    ]
    assert {(Path(left.path).name, left.problem) for left in found.left_out} == {
        ("notes.csv", False),
        ("m.mrxs", True),
        ("one.dcm", True),
        ("two.dcm", True),
    }
    (dir_alone,) = read_slides(f"file://{tmp_path}/*").left_out[:1]
    assert (Path(dir_alone.path).name, dir_alone.problem) == ("dir", True), "its slides are not in the pattern"
