"""The gate against getting slower, on real releases, served."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from m2ost_contract import Manifest
from m2ost_loadtests.gate.thresholds import SHIPPED

from tests.support.command import error_of, m2ost

from .releases import reseal

M2OST = Path(sys.executable).with_name("m2ost")
SLIDE = "wsi/CMU-1-Small-Region.svs"
LOADED = "engine = load_engine(release, choice, gpu, threads=CpuThreads.from_parameters(parameters))"
SLOWER = """
        run = engine.run

        def slower(batch):
            began = time.perf_counter()
            expression = run(batch)
            time.sleep(0.3 * (time.perf_counter() - began))
            return expression

        engine.run = slower"""


def gate(*arguments):
    """Exit status and words of the command."""
    status, output, errors = m2ost("bench", "gate", *arguments)
    return status, output + errors


def some_of_the_shipped(file, *names):
    """A thresholds file with some of the limits that ship."""
    shipped = yaml.safe_load(SHIPPED.read_text())
    file.write_text(yaml.safe_dump({name: shipped[name] for name in names}))
    return file


@pytest.mark.alone
def test_a_slow_down_of_a_third_is_caught(paper_release, svs, tmp_path):
    slow = tmp_path / "slow"
    shutil.copytree(paper_release, slow)
    model = slow / "m2ost" / "1" / "model.py"
    source = model.read_text()
    assert LOADED in source
    model.write_text("import time\n" + source.replace(LOADED, LOADED + SLOWER))
    reseal(slow)
    limits = some_of_the_shipped(tmp_path / "limits.yaml", "served_over_bare", "failed_requests", "bytes_per_spot")
    options = ("--thresholds", limits, "--pitch-um", 130, "--rounds", 3, "--users", 2, "--load-s", 2)

    def judged(release, expected):
        """What the gate says: what else a shared machine does can turn one verdict, and the next is another's."""
        command = [M2OST, "bench", "gate", release, svs, "--out", tmp_path / "out", *options]
        for _ in range(3):
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
            if done.returncode == expected:
                return done.stdout + done.stderr
        raise AssertionError(done.stdout + done.stderr)

    judged(paper_release, 0)
    output = judged(slow, 3)
    assert "served ÷ bare: 0." in output
    assert "at least 0.8: MISSED" in output
    assert "**MISSED**" in (tmp_path / "out" / "gate.md").read_text()


def on(server, *arguments):
    """Arguments for a running server."""
    return ("--server", server.address, "--served-as", SLIDE, "--metrics-url", server.metrics_url, *arguments)


def test_a_run_without_a_baseline_leaves_one_behind(narrow_release, narrow_server, svs, tmp_path):
    limits = some_of_the_shipped(tmp_path / "limits.yaml", "failed_requests", "bytes_per_spot", "baseline_tolerance")
    file = tmp_path / "baseline.json"
    short = ("--rounds", 1, "--load-s", 2, "--pitch-um", 200)
    options = on(narrow_server, "--thresholds", limits, "--baseline", file, "--write-baseline", file, *short)
    status, output = gate(narrow_release, svs, "--out", tmp_path / "out", *options)
    assert status == 4, output
    assert "baseline: there is none" in output
    figures = json.loads(file.read_text())
    assert set(figures["rates"]) == {"bare", "served", "closed load"}
    assert figures["fingerprint"]["server"] == "triton 2.51.0"
    measured = json.loads((tmp_path / "out" / "gate.json").read_text())["measurement"]
    assert measured["requests_per_batch"] > 1
    assert measured["bytes_per_spot"] <= 100


def test_bad_input_is_an_error_that_says_what_to_do(narrow_release, narrow_server, svs, tmp_path):
    limits = some_of_the_shipped(tmp_path / "limits.yaml", "failed_requests")
    all_but_speed = some_of_the_shipped(tmp_path / "all.yaml", "requests_per_batch", "baseline_tolerance")
    typo = tmp_path / "typo.yaml"
    typo.write_text("served_over_bear: {at_least: 1, because: x}\n")
    wants = tmp_path / "wants.yaml"
    wants.write_text("speedup_over_istar: {stock: {at_least: 100, because: the article}}\n")
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    ours = on(narrow_server, "--thresholds", limits)
    for arguments, words in (
        (("--server", "127.0.0.1:9", "--served-as", SLIDE, "--thresholds", limits), "127.0.0.1:9: no server answers"),
        ((*ours, "--served-as", "wsi/absent.svs"), "absent.svs: no such slide on the server"),
        ((*ours, "--pitch-um", 100_000), "no spots at a pitch of 100000 µm"),
        (("--thresholds", typo), "unknown key 'served_over_bear'; the nearest known is 'served_over_bare'"),
        (("--thresholds", wants), "variant 'stock', which is not measured"),
        (("--thresholds", all_but_speed, "--baseline", damaged), "not a baseline"),
        (("--thresholds", limits, "--baseline", damaged), "needs `baseline_tolerance`"),
        (("--server", narrow_server.address), "--server and --served-as belong together"),
        (("--server", narrow_server.address, "--served-as", SLIDE, "--thresholds", all_but_speed), "--metrics-url"),
        ((), "'istar stock', which is not measured (none was given); give it with --speedups FILE"),
    ):
        assert words in error_of("bench", "gate", narrow_release, svs, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argument", ["release", "slide"])
def test_a_release_or_slide_that_is_none(narrow_release, svs, tmp_path, argument):
    given = {"release": narrow_release, "slide": svs, argument: tmp_path / "absent"}
    limits = some_of_the_shipped(tmp_path / "limits.yaml", "failed_requests")
    out = ("--out", tmp_path / "out", "--thresholds", limits)
    assert "absent" in error_of("bench", "gate", given["release"], given["slide"], *out)


def test_another_release_than_the_served_one(narrow_release, narrow_server, svs, tmp_path):
    limits = some_of_the_shipped(tmp_path / "limits.yaml", "failed_requests")
    options = on(narrow_server, "--load-s", 1, "--users", 1, "--thresholds", limits)
    other = tmp_path / "other"
    shutil.copytree(narrow_release, other)
    manifest = Manifest.read(other)
    replace(manifest, engine=replace(manifest.engine, release_sha256="0" * 64)).write(other)
    status, output = gate(other, svs, "--out", tmp_path / "out", *options)
    assert status == 1
    assert "give the release that is served" in output
