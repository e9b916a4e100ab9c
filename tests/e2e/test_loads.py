"""Locust as a person runs it, against a real Triton; what it reports is held against the server's own counts."""

import csv
import re
import shutil
import subprocess
import sys
import threading
import time

import psutil
import pytest
from m2ost_client import ServerOptions, TritonServer
from m2ost_loadtests.load.closed_load import run_closed_load
from m2ost_loadtests.load.load_report import LoadReport
from m2ost_loadtests.load.locust_command import LOCUSTFILE
from m2ost_loadtests.load.workload import Load

from tests.support.machine import kept_ports

from .releases import reseal
from .servers import metrics_of

SLIDE = "wsi/CMU-1-Small-Region.svs"
OTHER = "wsi/her2st_C2.tif"


def locust(address, *arguments):
    """Run the command; (exit status, output)."""
    command = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, "--headless", "--only-summary", "--host", address]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_all_users_are_in_flight_at_once(narrow_server):
    # A call that blocked the process would leave one request in the server at a time, and nothing to join.
    load = Load(spots=1, deadline_s=30)
    url = narrow_server.metrics_url
    report = run_closed_load(narrow_server.address, [SLIDE], users=24, seconds=2, load=load, metrics_url=url)
    assert report.all["failed"] == report.all["unanswered_at_the_end"] == 0
    assert report.models["m2ost_slide"]["request_s"] / report.elapsed_s > 12
    assert report.models["m2ost"]["requests_per_execution"] > 1
    assert report.models["m2ost_slide"]["rows"] == report.all["spots"]
    assert report.priority == {"m2ost_slide": 0}


def test_two_workers_two_slides_and_two_classes_of_traffic(narrow_server, tmp_path):
    arguments = ("--slide", SLIDE, "--slide", OTHER, "-u", 6, "-r", 100, "-t", "3s", "--processes", 2, "--spots", 2)
    arguments += ("--archive-share", 0.5, "--archive-spots", 8, "--stop-timeout", 30)
    arguments += ("--metrics-url", narrow_server.metrics_url)
    arguments += ("--csv", tmp_path / "load", "--html", tmp_path / "load.html")
    before = metrics_of(narrow_server)["m2ost_tiler_spots_total{slide_tiler}"]
    status, output = locust(narrow_server.address, *arguments)
    assert status == 0, output
    report = LoadReport.read(tmp_path / "load_spots.json")
    interactive, archive = (report.by_name[f"m2ost_slide {name}"] for name in ("interactive", "archive"))
    assert interactive["spots"] == 2 * interactive["requests"] > 0
    assert archive["spots"] == 8 * archive["requests"] > 0
    assert metrics_of(narrow_server)["m2ost_tiler_spots_total{slide_tiler}"] - before == report.all["spots"]
    with (tmp_path / "load_stats.csv").open() as stream:
        by_locust = {row["Name"]: int(row["Request Count"]) for row in csv.DictReader(stream)}
    assert by_locust["m2ost_slide archive"] == archive["requests"]
    assert by_locust["Aggregated"] == report.all["requests"]
    assert report.all["unanswered_at_the_end"] == 0
    assert set(report.slides) == {SLIDE, OTHER}
    assert archive["bytes_per_spot"] < 100
    assert "spots/s" in (tmp_path / "load.html").read_text()
    assert re.search(r"^m2ost_slide archive +\d", output, re.MULTILINE)
    assert (tmp_path / "load_spots.csv").read_text().count("\n") == 4


def test_users_who_send_pixels_from_a_worker_that_was_told_nothing_but_its_master(narrow_server, tmp_path):
    worker = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, "--worker", "--master-host", "127.0.0.1"]
    with (
        kept_ports(1) as (port,),
        subprocess.Popen([*worker, "--master-port", str(port)], stderr=subprocess.PIPE) as process,
    ):
        master = ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", 1)
        # The time runs while this worker prepares: it is told its users only as they start.
        arguments = ("PatchesUser", "--spots", 3, "-u", 2, "-t", "5s", "--stop-timeout", 30, "--csv", tmp_path / "load")
        status, output = locust(narrow_server.address, *master, *arguments)
        assert status == 0, output
        process.communicate(timeout=30)
        assert process.returncode == 0
    report = LoadReport.read(tmp_path / "load_spots.json")
    assert (report.users, report.models) == (["PatchesUser"], {})
    assert report.all["failed"] == report.all["unanswered_at_the_end"] == 0
    assert report.all["spots"] == 3 * report.all["requests"] > 0
    pixels = 3 * 224 * 224 * 3
    assert pixels < report.all["bytes_per_spot"] < pixels + 100


def test_a_step_load_reports_its_steps(narrow_server, tmp_path):
    arguments = ("--slide", SLIDE, "--spots", 1, "--step-users", 2, "--step-s", 2, "--steps", 2)
    status, output = locust(narrow_server.address, *arguments, "--csv", tmp_path / "load")
    assert status == 0, output
    stages = LoadReport.read(tmp_path / "load_spots.json").stages
    assert [stage["users"] for stage in stages] == [2, 4]
    assert all(stage["requests"] > 0 for stage in stages)


def test_an_open_load_shows_a_stall(narrow_server, tmp_path):
    # Due every 100 ms whatever the server does: some 20 requests come due while it stands still for two seconds. A load
    # that waited for its answers would see as many late ones as it has users.
    stall = threading.Thread(target=suspend_once_busy, args=(narrow_server, 2.0))
    stall.start()
    arguments = ("--slide", SLIDE, "--spots", 1, "-u", 2, "-r", 100, "-t", "7s", "--arrival-rate", 5)
    status, output = locust(narrow_server.address, *arguments, "--stop-timeout", 30, "--csv", tmp_path / "load")
    stall.join()
    assert status == 0, output
    report = LoadReport.read(tmp_path / "load_spots.json")
    assert report.all["requests"] >= 30
    assert report.all["unanswered_at_the_end"] == 0
    assert report.all["latency_s"]["p95"] > 1.0


def suspend_once_busy(server, seconds):
    """Let the server stand still for a while, after it has answered a few requests."""
    name = "nv_inference_request_success{m2ost_slide}"
    goal = metrics_of(server)[name] + 5
    while metrics_of(server)[name] < goal:
        time.sleep(0.1)
    process = psutil.Process(server.pid)
    process.suspend()
    time.sleep(seconds)
    process.resume()


def test_a_priority_is_sent_where_the_served_queue_has_levels(narrow_release, roots, tmp_path):
    release = tmp_path / "release"
    shutil.copytree(narrow_release, release)
    config = release / "slide_tiler" / "config.pbtxt"
    levels = "priority_levels: 2 default_priority_level: 2"
    config.write_text(f"{config.read_text()}dynamic_batching {{ {levels} }}\n")
    reseal(release)
    with TritonServer(ServerOptions(release=release, roots=roots)) as server:
        load = Load(spots=1, archive_share=0.5, archive_spots=4)
        report = run_closed_load(server.address, [SLIDE], users=2, seconds=1, load=load)
    assert report.priority == {"m2ost_slide": 2}
    assert "no priority was sent" not in report.to_text()
    assert report.all["failed"] == 0
    assert set(report.by_name) == {"m2ost_slide interactive", "m2ost_slide archive"}


def test_requests_that_an_open_load_could_not_send_are_failures(narrow_server, tmp_path):
    arguments = ("--slide", SLIDE, "--spots", 64, "-u", 1, "-t", "2s", "--arrival-rate", 100, "--max-in-flight", 2)
    status, output = locust(narrow_server.address, *arguments, "--csv", tmp_path / "load")
    assert status == 1, output
    report = LoadReport.read(tmp_path / "load_spots.json")
    ((reason, count),) = report.all["failures"].items()
    assert reason.startswith("NOT_SENT: 2 requests of this user are unanswered")
    assert count > report.all["requests"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--slide", "wsi/absent.svs"), "absent.svs: no such slide on the server"),
        (("--slide", SLIDE, "IstarUser"), "model istar_slide is not loaded; served: m2ost_slide, m2ost_patches"),
        (("--slide", SLIDE, "--spots", 0), "--spots must be 1 to 256"),
        (("--slide", SLIDE, "--pitch-um", 100_000, "--processes", 2), "has no spots at a pitch of 100000 µm"),
        ((), "--slide root/relative/path"),
    ],
)
def test_a_load_that_cannot_be_is_an_error_before_there_are_users(narrow_server, arguments, words):
    status, output = locust(narrow_server.address, "-t", "30s", *arguments)
    assert status == 1
    assert re.search(f"^error: .*{re.escape(words)}", output, re.MULTILINE), output
    assert "Traceback" not in output


def test_no_server_at_the_address():
    status, output = locust("127.0.0.1:9", "-t", "30s", "--slide", SLIDE)
    assert status == 1
    assert "127.0.0.1:9: no server answers" in output
    assert "m2ost serve" in output
