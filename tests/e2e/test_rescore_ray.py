"""An archive on a Ray cluster of several workers: the same bytes, whatever becomes of a worker."""

import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anndata
import psutil
import pytest
from m2ost_client import InputError, ReleaseChanged, ServerUnavailable
from m2ost_client.archive import SlideRow, connected
from m2ost_contract import install_command

from tests.attack.liar import Liar, lies
from tests.support.machine import kept_ports, wait_for
from tests.support.releases import ENGINE

from .archives import MPP, rescore, results
from .servers import Held

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Makes Ray listen at 127.0.0.1 alone, as it does on a laptop: whoever reaches a cluster can run code there."""

PLACES = 2


def start(folder, **resources):
    """Start a cluster of one node below ``folder``; returns its process, whose children are all of it, and address."""
    with kept_ports(2) as (port, client_port):
        command = [
            Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--disable-usage-stats",
            "--include-dashboard=false", "--log-style=record", "--log-color=false", "--num-cpus=2",
            "--object-store-memory=100000000", "--node-ip-address=127.0.0.1", f"--port={port}",
            f"--ray-client-server-port={client_port}", "--min-worker-port=0", "--max-worker-port=0",
            f"--temp-dir={folder}", f"--resources={json.dumps(resources)}",
        ]  # fmt: skip
        log = Path(folder, "start.log")
        with log.open("w") as stream:
            process = psutil.Popen(command, stdout=stream, stderr=stream, env={**os.environ, **LOOPBACK})
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert process.is_running(), log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return process, f"127.0.0.1:{port}"


def stop(process):
    processes = [process, *process.children(recursive=True)]
    process.terminate()
    for left in psutil.wait_procs(processes, timeout=10)[1]:
        with suppress(psutil.NoSuchProcess):
            left.kill()


def listens_at(process) -> set[str]:
    """Where a process listens; nowhere if it has ended since it was found."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        found = {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return {address.removeprefix("::ffff:") for address in found}


def at_work(head):
    """Worker processes that have a unit of work: Ray writes that into their names."""
    found = []
    for process in head.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [process] if process.name().startswith("ray::score") else []
    return found


@pytest.fixture(scope="module")
def head():
    """A cluster on which as many tasks run at a time as ``PLACES``, and its address."""
    folder = tempfile.mkdtemp(prefix="m2ost-ray-")  # short: the names of its sockets have 100 characters at most
    process, address = start(folder, triton=PLACES)
    try:
        yield process, address
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(head):
    with pytest.MonkeyPatch.context() as environment:
        for name, value in LOOPBACK.items():
            environment.setenv(name, value)
        yield head[1]


def test_the_same_bytes_as_from_one_process_with_slides_split_over_workers(
    head, cluster, archive_server, archive_slides, undisturbed, tmp_path
):
    out, made, at_a_time = tmp_path / "out", [], []
    report = rescore(
        archive_slides[1],
        out,
        [archive_server],
        ray=cluster,
        range_spots=9,
        control=made.append,
        on_progress=lambda progress: at_a_time.append(len(at_work(head[0]))),
    )
    assert report.complete
    assert results(out) == results(undisturbed)
    for process in (psutil.Process(), *head[0].children(recursive=True)):
        assert listens_at(process) <= {"127.0.0.1"}, process
    run, workers = report.summary["run"], made[0].runner.workers
    assert 1 <= max(at_a_time) <= PLACES, "as many tasks at a time as the resource allows"
    assert len(workers) >= 2
    tasks = {"tasks": workers.total(), "workers": len(workers)}
    assert run["ray"] == {"address": cluster, "places": PLACES, **tasks}
    assert workers.total() > len(archive_slides[1]), "the large slide is more than one task"
    assert sum(server["spots"] for server in run["servers"]) == run["spots"] == report.summary["spots"]


@pytest.mark.parametrize("lie", ["one row fewer", "another release in mid-run"])
def test_a_server_that_lies_to_workers_gets_no_result_out_of_them(cluster, tmp_path, lie):
    rows, out = [SlideRow(name, f"root/{name}.png") for name in "ab"], tmp_path / "out"
    with Liar(ENGINE, lies()[lie]) as server:
        options = {"ray": cluster, "range_spots": 9, "retry_for_s": 5}
        if lie == "another release in mid-run":
            with pytest.raises((ReleaseChanged, ServerUnavailable)):
                rescore(rows, out, [server.address], **options)
        else:
            failed = rescore(rows, out, [server.address], **options).summary["failed"]
            assert [slide["slide_id"] for slide in failed] == ["a", "b"]
            assert all("the server's answer cannot be used" in slide["reason"] for slide in failed)
    assert list((out / "results").iterdir()) == []


def test_a_worker_killed_in_mid_run_costs_nothing(head, cluster, archive_server, archive_slides, undisturbed, tmp_path):
    out, made, killed, in_its_place = tmp_path / "out", [], [], []

    def kill_a_worker():
        """Hold the server up, so that tasks that are begun stay under way, and kill a worker at one."""
        with Held(archive_server):
            seen = wait_for(lambda: found if len(found := at_work(head[0])) == PLACES else [], "tasks at work", 25)
            killed.append(seen[0])
            seen[0].kill()
            in_its_place.extend(wait_for(lambda: set(at_work(head[0])) - set(seen), "another worker", 25))

    def once_something_is_scored(progress):
        # On a thread of its own: the run goes on to begin tasks, also where none is under way now.
        if progress.spots and killer.ident is None:
            killer.start()

    killer = threading.Thread(target=kill_a_worker)
    report = rescore(
        archive_slides[1],
        out,
        [archive_server],
        ray=cluster,
        range_spots=9,
        control=made.append,
        on_progress=once_something_is_scored,
    )
    killer.join()
    assert not killed[0].is_running()
    assert report.complete
    assert results(out) == results(undisturbed)
    assert report.summary["run"]["spots"] == report.summary["spots"], "no spot is counted twice"
    assert {worker.pid for worker in in_its_place} & {pid for _, pid in made[0].runner.workers}, (
        "another took its place"
    )


def test_workers_read_and_send_slides_and_say_which_are_bad(
    cluster, archive_server, archive_slides, truncated_svs, undisturbed, tmp_path
):
    folder = archive_slides[0]
    rows = [replace(row, path=str(folder / Path(row.path).name)) for row in archive_slides[1] if row.slide_id == "s00"]
    rows.append(SlideRow("half", str(truncated_svs), mpp=MPP))
    report = rescore(rows, tmp_path / "out", [archive_server], ray=cluster, range_spots=9, send_pixels=True)
    (failed,) = report.summary["failed"]
    assert failed["slide_id"] == "half"
    assert "truncated.svs: " in failed["reason"]
    assert "Traceback" not in failed["reason"]
    name = "results/s00.h5ad"
    sent, asked = ((f / name) for f in (tmp_path / "out", undisturbed))
    assert (anndata.read_h5ad(sent).X == anndata.read_h5ad(asked).X).all()


def test_a_cluster_that_cannot_be_used_is_told(monkeypatch):
    with kept_ports(1) as (port,), pytest.raises(InputError, match=f":{port}: no Ray cluster answers there"):
        connected(f"127.0.0.1:{port}").__enter__()
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=rf"needs the extra 'ray' .* {re.escape(install_command('ray'))}"),
        connected("auto"),
    ):
        pass


def test_workers_show_servers_what_the_run_shows_them(cluster, secured, archive_slides, undisturbed, tmp_path):
    run = {"ray": cluster, "range_spots": 9}
    report = rescore(archive_slides[1], tmp_path / "out", [secured.server], credentials=secured.known, **run)
    assert report.complete
    assert report.summary["run"]["ray"]["tasks"] > 1
    assert results(tmp_path / "out") == results(undisturbed)
    assert secured.token not in str(report.summary)
