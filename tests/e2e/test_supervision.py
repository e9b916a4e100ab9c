"""Servers that start, die, are restarted, and leave nothing behind."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from m2ost_bench.process_memory import MIB
from m2ost_bench.served import soak
from m2ost_client import ServerOptions, ServerStartError, SpotStream, StreamOptions, TritonServer
from m2ost_client.server import policy
from m2ost_client.server.host import SHM, Ports
from m2ost_contract import RowStatus, ViewGeometry
from m2ost_preprocess.network import read_url

from tests.support.machine import need_address, wait_for

from .releases import by_pytorch
from .servers import by_server, heed_ctrl_c, process_of, raw_request, still_running, tiler_decoder, waiting

SLIDE = "wsi/CMU-1-Small-Region.svs"
M2OST = Path(sys.executable).with_name("m2ost")


@pytest.fixture(scope="module")
def harmed(narrow_release, roots, tmp_path_factory):
    """A server to be harmed, which is started anew at once however often it was."""
    log = []
    options = ServerOptions(
        release=narrow_release,
        roots=roots,
        probe_interval_s=0.5,
        hang_timeout_s=3,
        ready_file=tmp_path_factory.mktemp("harmed") / "ready",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "HEALTHY_AFTER_S", 0.0)
        with TritonServer(options, on_log=log.append) as server:
            server.log = log
            yield server


@pytest.fixture
def server(harmed):
    """The same, ready, with an empty log."""
    wait_for(lambda: harmed.ready, "a server that is ready")
    harmed.log.clear()
    return harmed


@pytest.fixture(scope="module")
def patient(narrow_release, roots):
    """Another, which waits for an answer as long as by default."""
    log, options = [], ServerOptions(release=narrow_release, roots=roots, probe_interval_s=0.5)
    with TritonServer(options, on_log=log.append) as server:
        server.log = log
        yield server


@pytest.mark.parametrize("model", ["m2ost", "slide_tiler", "slide_info", "row_guard"])
def test_a_dead_model_process_is_noticed_and_the_server_restarted(server, model):
    before, restarts = set(SHM.glob(f"{server.shm_prefix}*")), server.restarts
    assert before
    file = server.options.ready_file
    looked = file.stat().st_mtime_ns
    wait_for(lambda: file.stat().st_mtime_ns > looked, "another look")
    process_of(server, f"/{model}/1/model.py").send_signal(signal.SIGSEGV)
    wait_for(lambda: not file.exists(), "the file to go")
    wait_for(lambda: server.restarts == restarts + 1, "restart")
    wait_for(file.exists, "ready again")
    _, status = by_server(server.address, SLIDE, [(800, 800)])
    assert status.tolist() == [RowStatus.OK]
    assert not before & set(SHM.glob(f"{server.shm_prefix}*")), "the dead server's shared memory is still there"
    assert any(record.get("event") == "server_restarted" for record in server.log)
    assert f"\nm2ost_server_restarts_total {server.restarts}\n" in read_url(server.metrics_url, 5)


@pytest.mark.parametrize("model", ["slide_tiler", "slide_info"])
def test_a_model_that_hangs_while_the_others_answer_is_noticed(server, model):
    restarts = server.restarts
    process_of(server, f"/{model}/1/model.py").suspend()
    wait_for(lambda: server.restarts == restarts + 1, "restart", 60)
    _, status = by_server(server.address, SLIDE, [(800, 800)])
    assert status.tolist() == [RowStatus.OK]


def test_a_server_dying_in_mid_run_costs_no_spot(server, narrow_release, svs):
    centers = np.random.default_rng(4).integers(100, 2000, (60, 2))
    restarts = server.restarts

    async def stream():
        expression = np.full((60, 6), np.nan, np.float32)
        async with SpotStream(server.address, StreamOptions(batch_rows=2, window=4)) as client:
            done = 0
            async for batch in client.predict(SLIDE, centers):
                expression[batch.rows] = batch.expression
                done += len(batch.rows)
                if done == 20:
                    os.kill(server.pid, signal.SIGKILL)
            return expression, done, client.retries

    expression, done, retries = asyncio.run(stream())
    assert done == 60
    assert retries > 0
    assert server.restarts == restarts + 1
    np.testing.assert_allclose(expression, by_pytorch(narrow_release, svs, centers), rtol=0, atol=1e-4)


def test_a_reader_that_crashes_once_costs_nobody_anything(patient):
    server = patient
    expected, _ = by_server(server.address, SLIDE, [(800, 800)])
    child = tiler_decoder(server)
    child.suspend()  # the request is under way when the process dies
    with triton.InferenceServerClient(server.address) as client:
        answers = []

        def ask():
            request = raw_request([SLIDE], [(800, 800)])
            client.async_infer("m2ost_slide", request, lambda result, error: answers.append((result, error)))

        ask()
        time.sleep(0.5)
        ask()
        wait_for(lambda: waiting(server), "a request behind that which the tiler is at")
        child.send_signal(signal.SIGSEGV)
        child.resume()
        wait_for(lambda: len(answers) == 2, "the answers")
    for result, error in answers:
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("EXPRESSION"), expected)  # read without cuCIM: the same pixels
    _, status = by_server(server.address, SLIDE, [(800, 800)])
    assert status.tolist() == [RowStatus.OK]
    assert not [record for record in server.log if record.get("event") == "server_restarted"]


def test_a_server_that_dies_again_as_it_starts_is_started_anew(patient, monkeypatch):
    monkeypatch.setattr(policy, "HEALTHY_AFTER_S", 600.0)
    server = patient
    server.log.clear()
    for restarts in range(server.restarts + 1, server.restarts + 4):
        os.kill(wait_for(lambda: server.pid, "a process"), signal.SIGKILL)
        wait_for(lambda restarts=restarts: server.restarts == restarts, "restart")
        time.sleep(0.3)  # while it starts
    wait_for(lambda: server.ready, "a server that is ready")
    assert by_server(server.address, SLIDE, [(800, 800)])[1].tolist() == [RowStatus.OK]
    events = [record for record in server.log if record["source"] == "supervisor"]
    assert [e["next_try_s"] for e in events if e["event"] == "server_restarted"] == [0.0, 1.0, 2.0]
    assert [e["event"] for e in events if e["event"] != "server_restarted"] == ["server_ready"]


def test_two_servers_for_one_port_are_never_both_ready(narrow_release, roots):
    # Both hold the port before either listens on it; the second starts when the first is ready.
    options = ServerOptions(release=narrow_release, roots=roots)
    first = TritonServer(options)
    log = []
    second = TritonServer(replace(options, ports=Ports(grpc=first.ports.grpc)), on_log=log.append)
    with first:
        with pytest.raises(ServerStartError, match=r"ended with status 1|another process listens on"):
            second.start()
        assert first.ready
    assert not [record for record in log if record.get("event") == "server_ready"]


def serve(release, slides, *arguments):
    command = [M2OST, "serve", release, "--slides", f"wsi={slides}", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, preexec_fn=heed_ctrl_c, **pipes)


FREE = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


def ready_record(process):
    for line in process.stdout:
        record = json.loads(line)
        if record.get("event") == "server_ready":
            return record
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize(
    ("number", "host", "listens_at"), [(signal.SIGTERM, "localhost", "127.0.0.1:"), (signal.SIGINT, "::1", "[::1]:")]
)
def test_m2ost_serve_says_when_it_is_ready_and_stops_cleanly(narrow_release, svs, number, host, listens_at):
    need_address("::1" if ":" in host else "127.0.0.1")
    process = serve(narrow_release, svs.parent, *FREE, "--host", host)
    record = ready_record(process)
    address = record["address"]
    assert address.startswith(listens_at)
    assert "nv_inference" in read_url(record["metrics"], 5)
    family = psutil.Process(process.pid).children(recursive=True)
    assert by_server(address, SLIDE, [(800, 800)])[1].tolist() == [0]
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert all(isinstance(json.loads(line), dict) for line in output.splitlines())
    assert errors == ""
    assert not still_running(family)
    assert not list(SHM.glob(f"m2ost-{process.pid}-*"))


def test_m2ost_serve_runs_on_when_nobody_reads_its_log(narrow_release, svs):
    process = serve(narrow_release, svs.parent, *FREE)
    address = ready_record(process)["address"]
    process.stdout.close()  # as `| head` does
    centers = np.full((400, 2), 800)
    # More lines than the 64 KiB that a pipe holds: a request's has more than 200 bytes.
    assert not by_server(address, SLIDE, centers, batch_rows=1)[1].any()
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 0
    (said,) = process.stderr.read().splitlines()
    assert "the server's log is cut off here" in said


def test_kill_9_of_the_parent_leaves_no_server(narrow_release, svs):
    process = serve(narrow_release, svs.parent, *FREE)
    ready_record(process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 7, "tritonserver, four models, two decoders"
    process.kill()
    process.wait()
    wait_for(lambda: not still_running(family), "an end of all")
    assert not list(SHM.glob(f"m2ost-{process.pid}-*"))


def test_the_printed_command_starts_the_same_server(narrow_release, svs):
    printed = subprocess.run(
        [M2OST, "serve", narrow_release, "--slides", svs.parent, *FREE, "--print-command"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "--model-config-name=cpu" in printed
    assert "--grpc-restricted-protocol=model-repository,shared-memory" in printed
    assert "--allow-http=false" in printed
    port = re.search(r"--grpc-port=(\d+)", printed).group(1)
    process = subprocess.Popen(printed, shell=True, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        _, status = by_server(f"127.0.0.1:{port}", f"{svs.parent.name}/{svs.name}", [(800, 800)])
        assert status.tolist() == [0]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_a_taken_port_is_a_clear_error(narrow_release, svs):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        process = serve(narrow_release, svs.parent, *FREE[2:], "--grpc-port", str(sock.getsockname()[1]))
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.startswith("error: cannot listen on 127.0.0.1:")
    assert "choose another port" in errors


@pytest.mark.parametrize("profile", ["onnxruntime", "tensorrt"])
def test_every_profile_starts_but_for_the_missing_backend_and_gpu(narrow_release, roots, profile, monkeypatch):
    monkeypatch.setattr(
        "m2ost_client.server.supervisor.check_start", lambda *facts: []
    )  # Triton's own words are wanted
    errors = []

    def collect(record):
        if record["level"] == "error" and "failed to load" in str(record.get("message")):
            errors.append(record["message"])

    options = ServerOptions(release=narrow_release, roots=roots, profile=profile)
    with pytest.raises(ServerStartError, match=f"backend '{profile}'"), TritonServer(options, on_log=collect):
        pass
    # Views for an engine on a GPU are cut there, so that without one the tiler refuses too.
    refused = {message.split("'")[1]: message for message in errors}
    assert set(refused) == {"m2ost", "slide_tiler"}
    assert f"unable to find backend library for backend '{profile}'" in refused["m2ost"]
    assert "kind KIND_GPU but no GPUs are available" in refused["slide_tiler"]


def test_an_unknown_profile_is_not_silently_the_default(narrow_release, roots):
    with pytest.raises(ServerStartError, match=r"no profile 'h100'; it has cpu, cpu-bf16, .*, tensorrt"):
        TritonServer(ServerOptions(release=narrow_release, roots=roots, profile="h100"))


def test_memory_stays_flat_over_1600_spots(narrow_release, svs, tmp_path):
    # A client of its own: this process has servers of other tests, whose logs it keeps.
    command = [Path(sys.executable).with_name("m2ost"), "bench", "soak", narrow_release, svs]
    command += ["--spots", 1600, "--out", tmp_path]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=600)
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["restarts"] == 0
    assert len(report["samples"]) == soak.SAMPLES
    options, geometry = StreamOptions(), ViewGeometry()
    request = options.batch_rows * geometry.n_views * np.prod(geometry.shape) / MIB
    # The second half brought 25 requests. One in 50 that the client keeps shows, and one in twelve in the server, or in
    # the room that the burst's larger requests left in shared memory. The slide's tiles were all kept by then.
    assert report["growth_mib"]["client"] < request / 2, report["samples"]
    assert report["growth_mib"]["server"] < 2 * request, report["samples"]
    assert report["growth_mib"]["shared"] == 0, report["samples"]
    # /dev/shm holds what was in flight at most, once behind the tiler and once before the engine.
    in_flight = soak.BURST_ROWS * options.window
    assert report["samples"][-1]["shared"] - report["idle"]["shared"] <= 2 * in_flight * request, report["samples"]
