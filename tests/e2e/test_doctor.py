"""The doctor on a real release and a real tritonserver; and that none starts where it finds an error."""

import json
import shutil
import time

import pytest
from m2ost_client import ServerOptions, ServerStartError, TritonServer
from m2ost_client.server.doctor.collect import host_facts
from m2ost_client.server.doctor.profile import read_profile
from m2ost_client.server.host import SHM

from tests.support.command import m2ost

from .servers import by_server

PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


@pytest.fixture
def no_gpu():
    if host_facts(ask_driver=True).gpus:
        pytest.skip("this machine has a GPU")


def test_a_release_that_is_served_here_fits(narrow_release, narrow_server, svs):
    assert narrow_server.pid
    status, output, errors = m2ost("doctor", narrow_release, *PORTS, "--slides", svs.parent, "--json")
    assert status == 0, output + errors
    report = json.loads(output)
    assert report["fits"]
    subjects = {finding["subject"] for finding in report["findings"]}
    assert {"release", "files", "tritonserver", "backends", "environment", "onnxruntime", "/dev/shm"} <= subjects
    assert {finding["level"] for finding in report["findings"]} == {"ok"}


def test_the_largest_batches_fit_the_shared_memory_that_is_asked_for(narrow_server, narrow_release):
    by_server(narrow_server.address, "wsi/CMU-1-Small-Region.svs", [(800, 800)] * 256, batch_rows=256)
    taken = sum(region.stat().st_size for region in SHM.glob(f"{narrow_server.shm_prefix}*"))
    asked_for = read_profile(narrow_release, "cpu").shm_bytes
    assert asked_for / 2 < taken <= asked_for


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_profile_without_a_gpu_is_refused_in_the_same_words(narrow_release, svs):
    status, output, _ = m2ost("doctor", narrow_release, *PORTS, "--profile", "python-gpu")
    assert status == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error    gpu:")]
    assert "needs a GPU and this machine has none" in line
    began = time.monotonic()
    status, _, errors = m2ost("serve", narrow_release, *PORTS, "--slides", svs.parent, "--profile", "python-gpu")
    assert (status, line in errors) == (1, True)
    assert time.monotonic() - began < 60, "it was refused, not waited for"
    status, _, errors = m2ost("serve", narrow_release, *PORTS, "--slides", svs.parent, "--profile", "tensorrt")
    assert (status, "needs the backend tensorrt; this tritonserver has: python" in errors) == (1, True)


@pytest.mark.usefixtures("no_gpu")
def test_triton_itself_runs_no_gpu_profile_on_the_cpu(narrow_release, monkeypatch):
    monkeypatch.setattr("m2ost_client.server.supervisor.check_start", lambda *facts: [])
    options = ServerOptions(release=narrow_release, profile="python-gpu")
    with pytest.raises(ServerStartError, match="KIND_GPU but no GPUs are available"), TritonServer(options):
        pass


def test_a_truncated_graph_is_refused_before_anything_starts(narrow_release, svs, tmp_path):
    release = tmp_path / "release"
    shutil.copytree(narrow_release, release)
    onnx = release / "m2ost" / "1" / "model.onnx"
    onnx.write_bytes(onnx.read_bytes()[:-100])
    status, output, _ = m2ost("doctor", release, *PORTS)
    assert (status, f"{onnx}: truncated, changed or swapped" in output) == (1, True)
    log = tmp_path / "server.log"
    arguments = ("predict", svs, "--release", release, "--out", tmp_path / "out", "--server-log", log)
    status, _, errors = m2ost(*arguments)
    assert (status, "truncated, changed or swapped" in errors) == (1, True)
    assert log.read_text() == "", "no server was started"
