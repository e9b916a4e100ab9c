"""What supervision decides, and how it treats its log, its command and its guard, without a tritonserver."""

import contextlib
import http.server
import json
import queue
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import psutil
import pytest
from m2ost_client import ServerOptions, TritonServer
from m2ost_client.errors import ServerStartError
from m2ost_client.server import policy, supervisor
from m2ost_client.server.command import CLOSED, LAUNCH, RESTRICTED_APIS, Command
from m2ost_client.server.host import SHM_PREFIX
from m2ost_client.server.installation import Installation
from m2ost_client.server.logs import LastWords, parse_line
from m2ost_client.server.policy import HEALTHY_AFTER_S, MAX_RESTART_DELAY_S, Backoff, HangWatch, StartWatch, WorkWatch
from m2ost_client.server.probe import Health, executions_so_far
from m2ost_client.server.process import ServerProcess
from m2ost_client.server.sockets import MOST_PEERS, Peers, named, peers, peers_at_end
from m2ost_client.server.supervisor import wait_for_event
from m2ost_contract import Manifest
from m2ost_serving.repository import MODELS_TOOL, template_sha256, write_repository

from tests.support.machine import in_namespaces, need_address, wait_for
from tests.support.releases import ENGINE

from .beside import folder_beside

LOCALHOST = "127.0.0.1"


def test_a_server_that_dies_again_and_again_is_started_anew_after_longer_and_longer():
    backoff = Backoff()
    delays = [backoff.delay_s(1.0) for _ in range(1000)]
    assert delays[:7] == [0, 1, 2, 4, 8, 16, 30]
    assert set(delays[6:]) == {MAX_RESTART_DELAY_S}


def test_a_server_that_was_healthy_is_started_anew_at_once():
    backoff = Backoff()
    assert [backoff.delay_s(0) for _ in range(4)] == [0, 1, 2, 4]
    assert backoff.delay_s(HEALTHY_AFTER_S - 1) == 8
    assert [backoff.delay_s(HEALTHY_AFTER_S), backoff.delay_s(0)] == [0, 1]


def test_a_model_that_hangs_while_others_work_is_found():
    watch = HangWatch(10)
    for now in range(0, 11, 5):
        assert watch.hung(["slide_tiler"], {"slide_tiler": 7, "m2ost": now}, now) is None
    assert watch.hung(["slide_tiler"], {"slide_tiler": 7, "m2ost": 15}, 15) == "slide_tiler"


def test_a_model_works_whose_executions_grow_from_one_look_to_the_next():
    watch = WorkWatch()
    assert not watch.moved({"m2ost": 7})
    assert watch.moved({"m2ost": 9, "slide_tiler": 3}) == {"m2ost"}
    assert not watch.moved({})
    assert not watch.moved({"m2ost": 12}), "not known since when"


def test_a_model_that_is_busy_is_not_hung():
    watch = HangWatch(10)
    assert all(watch.hung(["m2ost"], {"m2ost": now}, now) is None for now in range(0, 100, 5))


def test_a_model_that_answers_in_between_is_not_hung_and_one_that_does_not_is():
    watch = HangWatch(10)
    for now in range(0, 11, 5):
        silent = ["slide_tiler", "m2ost"] if now % 10 else ["slide_tiler"]
        assert watch.hung(silent, {}, now) is None
    assert watch.hung(["m2ost", "slide_tiler"], {}, 15) == "slide_tiler"


def test_a_server_whose_metrics_do_not_answer_either_is_hung():
    watch = HangWatch(10)
    assert watch.hung(["m2ost"], {"m2ost": 3}, 0) is None
    assert watch.hung(["m2ost"], {}, 8) is None
    assert watch.hung(["m2ost"], {}, 11) == "m2ost"


class Metrics(http.server.BaseHTTPRequestHandler):
    page = """# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="m2ost",version="1"} 3
nv_inference_exec_count{gpu_uuid="GPU-1",model="slide_tiler",version="1"} 40
nv_inference_exec_count{gpu_uuid="GPU-2",model="slide_tiler",version="1"} 2
nv_inference_count{model="m2ost",version="1"} 99
"""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.page) + (10 if self.path == "/cut" else 0)))
        self.end_headers()
        self.wfile.write(self.page.encode())

    def log_message(self, *args):
        pass


def test_executions_are_counted_by_model_and_a_cut_answer_is_none():
    with http.server.HTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert executions_so_far(f"{address}/metrics") == {"m2ost": 3, "slide_tiler": 42}
        assert executions_so_far(f"{address}/cut") == {}
        server.shutdown()
    assert executions_so_far(f"{address}/metrics") == {}


def test_all_a_process_said_has_been_handed_on_when_it_has_ended(tmp_path):
    records, begun = [], threading.Event()

    def slowly(record):
        begun.set()
        time.sleep(0.005)
        records.append(record["message"])

    command = Command(["/bin/sh", "-c", "seq 100; sleep 60"], {})
    process = ServerProcess(command, shm_prefix=f"{SHM_PREFIX}test-", runtime=tmp_path / "runtime", on_log=slowly)
    assert begun.wait(10)
    time.sleep(0.1)  # until all is in the pipe
    process.end(0)
    assert records == [str(i) for i in range(1, 101)]
    assert process.poll() == -9


SIGNALLED = """
import signal, threading, time
from m2ost_client.server.supervisor import wait_for_event

def raise_here():
    time.sleep(0.3)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    time.sleep(60)

signal.signal(signal.SIGTERM, signal.default_int_handler)
threading.Thread(target=raise_here, daemon=True).start()
try:
    wait_for_event(threading.Event())
except KeyboardInterrupt:
    print("heeded")
"""


def test_a_signal_that_another_thread_is_handed_ends_the_wait():
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=30)
    assert done.stdout == "heeded\n", done.stderr


def test_an_event_is_waited_for_no_longer_than_asked():
    event = threading.Event()
    wait_for_event(event, 0.05)
    threading.Timer(0.1, event.set).start()
    wait_for_event(event)
    assert event.is_set()


AT_REST = """
trap 'echo "I1130 12:00:00.000000 7 server.cc:336] \\"All models are stopped, unloading models\\""
  for i in $(seq 60); do sleep 0.05; done; exit 7' TERM
echo begun; while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(("whole", "status"), [(False, -9), (True, 7)])
def test_a_server_without_a_request_is_ended_at_once_unless_it_writes_a_trace(tmp_path, whole, status):
    begun = threading.Event()
    command = Command(["/bin/sh", "-c", AT_REST], {})
    process = ServerProcess(
        command, shm_prefix=f"{SHM_PREFIX}test-", runtime=tmp_path / "runtime", on_log=lambda record: begun.set()
    )
    assert begun.wait(10)
    process.end(20, whole=whole)
    assert process.poll() == status


def test_a_program_that_cannot_be_run_leaves_no_guard(tmp_path):
    before = psutil.Process().children()
    command = Command([str(tmp_path / "absent")], {})
    with pytest.raises(OSError, match="absent"):
        ServerProcess(command, shm_prefix=f"{SHM_PREFIX}test-", runtime=tmp_path / "runtime", on_log=print)
    assert psutil.Process().children() == before


def fake_server(tmp_path, script, on_log=None, **options):
    """A supervised program that is none of Triton's."""
    release, program = tmp_path / "release", tmp_path / "bin" / "tritonserver"
    for folder in (release, program.parent, tmp_path / "backends" / "python"):
        folder.mkdir(parents=True)
    write_repository(release, ENGINE)
    Manifest(ENGINE, {}, {}, {MODELS_TOOL: template_sha256()}).write(release)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return TritonServer(ServerOptions(release=release, **options), on_log=on_log, installation=Installation(program))


ENDS_BADLY = """i=0
while [ $i -lt 5000 ]; do echo "line $i of a log that is longer than a pipe holds"; i=$((i+1)); done
echo 'E1123 19:32:05.023168 1 x.cc:1] "the last word"'
exit 3"""


def test_the_last_words_of_a_server_that_cannot_start_are_quoted(tmp_path):
    with pytest.raises(ServerStartError, match=r"ended with status 3\n  the last word$"):
        fake_server(tmp_path, ENDS_BADLY).start()


LOSES_A_CHILD = f"""exec {sys.executable} -c '
import subprocess, time
child = subprocess.Popen(["sh", "-c", "echo what: stol; kill -9 $$"])
time.sleep(60)
' """
REFUSES_A_MODEL = r"""cat <<'END'
E1123 19:32:05.023168 1 x.cc:1] "failed to load 'm2ost' version 1: Internal: no\n\nAt:\n  model.py(3): f"
END
exec sleep 60"""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (LOSES_A_CHILD, r"given up: the process \d+ of a model ended as it started\n  what: stol$"),
        (REFUSES_A_MODEL, r"given up: model m2ost failed to load\n  failed to load 'm2ost' version 1: Internal: no$"),
    ],
)
def test_a_server_that_runs_on_without_a_model_is_not_waited_for(tmp_path, monkeypatch, script, words):
    monkeypatch.setattr(supervisor, "START_GRACE_S", 0.3)
    with pytest.raises(ServerStartError, match=words):
        fake_server(tmp_path, script, start_timeout_s=50).start()


def test_a_server_that_is_not_ready_in_time_says_what_was_heard(tmp_path):
    with pytest.raises(ServerStartError, match=r"not ready within 0.2 s \(.*Connection refused"):
        fake_server(tmp_path, "exec sleep 60", start_timeout_s=0.2).start()


def test_the_last_words_are_the_errors_and_else_what_is_no_part_of_tritons_log():
    words = LastWords()
    for line in (
        'I1123 19:32:05.023168 1 x.cc:1] "loading: m2ost:1"',
        'I1123 19:32:05.023168 1 x.cc:1] "loading: row_guard:1"',
        """I1123 19:32:05.023168 1 x.cc:1] "successfully loaded 'row_guard'\"""",
        "libgomp: Thread creation failed",
        'W1123 19:32:05.023168 1 x.cc:1] "{\\"event\\": \\"backlog_unknown\\", \\"error\\": \\"refused\\"}"',
    ):
        words.add(parse_line(line))
    assert (words.loading, words.refusals) == (("m2ost",), ())
    assert words.lines() == ["libgomp: Thread creation failed", "backlog_unknown: refused"]
    for _ in range(2):
        words.add(
            parse_line("""E1123 19:32:05.023168 1 x.cc:1] "failed to load 'm2ost' version 1: no\\n\\nAt:\\n  f\"""")
        )
    assert words.refusals == ("model m2ost failed to load",) * 2
    assert words.lines() == ["failed to load 'm2ost' version 1: no"]


def test_signs_count_once_they_have_been_there_for_a_while():
    watch = StartWatch(3)
    assert watch.failed(["a"], 0) is None
    assert watch.failed([], 2) is None
    assert watch.failed(["a", "b"], 4) is None
    assert watch.failed(["b"], 6) is None
    assert watch.failed(["b"], 7) == "b"


@pytest.mark.parametrize(
    ("host", "arguments"),
    [
        ("localhost", ("grpc-address=127.0.0.1", "http-address=127.0.0.1", "metrics-address=127.0.0.1")),
        ("::1", ("grpc-address=[::1]", "http-address=ipv6:::1", "metrics-address=ipv6:::1")),
    ],
)
def test_each_service_is_given_its_host_in_the_form_that_it_takes(tmp_path, host, arguments):
    need_address("::1" if ":" in host else "127.0.0.1")
    server = fake_server(tmp_path, 'for a; do echo "$a"; done; echo "$M2OST_METRICS_URL"', host=host, http=True)
    done = subprocess.run(server.print_command(), shell=True, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert {f"--{argument}" for argument in arguments} <= set(lines)
    shown = "[::1]" if ":" in host else "127.0.0.1"
    assert f"--http-port={server.ports.http}" in lines
    apis = f"{','.join(RESTRICTED_APIS)}:{CLOSED}"
    assert {f"--grpc-restricted-protocol={apis}", f"--http-restricted-api={apis}"} <= set(lines)
    assert server.address == f"{shown}:{server.ports.grpc}"
    assert lines[-1] == server.metrics_url == f"http://{shown}:{server.ports.metrics}/metrics"


def test_a_receiver_of_the_log_that_fails_ends_nothing(tmp_path):
    calls = []

    def full_disk(record):
        calls.append(record)
        raise OSError(28, "No space left on device")

    with pytest.raises(ServerStartError, match=r"ended with status 3\n  the last word$"):
        fake_server(tmp_path, ENDS_BADLY, on_log=full_disk).start()
    assert len(calls) == 1


OPENS_ITS_METRICS_LAST = f"""exec {sys.executable} - "$@" <<'END'
import pathlib, socket, sys, time
ports = dict(argument[2:].split("=") for argument in sys.argv if "-port=" in argument)
held = [socket.create_server(("127.0.0.1", int(ports["grpc-port"])))]
while not pathlib.Path("{{go}}").exists():
    time.sleep(0.01)
held.append(socket.create_server(("127.0.0.1", int(ports["metrics-port"]))))
time.sleep(60)
END"""


def test_a_server_whose_models_answer_is_ready_when_its_metrics_do(tmp_path, monkeypatch):
    probed = queue.SimpleQueue()
    monkeypatch.setattr(supervisor, "probe", lambda *_, **__: probed.put(None) or Health())
    monkeypatch.setattr(supervisor, "executions_so_far", lambda url: {})
    server = fake_server(tmp_path, OPENS_ITS_METRICS_LAST.format(go=tmp_path / "go"))
    starting = threading.Thread(target=server.start, daemon=True)
    starting.start()
    try:
        for _ in range(3):
            probed.get(timeout=30)
        assert starting.is_alive()
        (tmp_path / "go").touch()
        starting.join(30)
        assert not starting.is_alive()
        assert server.ready
        socket.create_connection(("127.0.0.1", server.ports.metrics)).close()
    finally:
        server.stop()
    assert not server.ready


def test_a_server_is_not_ready_because_another_answers_on_its_port(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "probe", lambda *_, **__: Health())
    monkeypatch.setattr(supervisor, "executions_so_far", lambda url: {})
    server = fake_server(tmp_path, "exec sleep 60", start_timeout_s=0.2)
    with socket.create_server((LOCALHOST, server.ports.grpc)):
        words = rf"another process listens on {server.address}; nothing listens on .*:{server.ports.metrics}\)"
        with pytest.raises(ServerStartError, match=words):
            server.start()


LISTENS_UNTIL_TOLD = f"""exec {sys.executable} - "$@" <<'END'
import pathlib, socket, sys, time
ports = dict(argument[2:].split("=") for argument in sys.argv if "-port=" in argument)
held = [socket.create_server(("127.0.0.1", int(ports[name]))) for name in ("grpc-port", "metrics-port")]
end = pathlib.Path("{{end}}")
held[0].settimeout(0.01)
while not end.exists():
    try:
        held.append(held[0].accept()[0])
    except TimeoutError:
        pass
if end.read_text() == "once":
    end.unlink()
END"""


@pytest.fixture
def mortal(tmp_path, monkeypatch):
    """A supervised program that is ready at once, and ends when it is told to."""
    probes = []
    monkeypatch.setattr(supervisor, "probe", lambda *_, **__: probes.append(1) or Health())
    monkeypatch.setattr(supervisor, "executions_so_far", lambda url: {})
    monkeypatch.setattr(policy, "MAX_RESTART_DELAY_S", 0.02)
    log, end = [], tmp_path / "end"
    with fake_server(tmp_path, LISTENS_UNTIL_TOLD.format(end=end), log.append, probe_interval_s=0.05) as server:
        server.log, server.end, server.probes = log, end, probes
        yield server


def restarts(server):
    return [record for record in server.log if record.get("event") == "server_restarted"]


def test_a_server_that_was_ready_once_is_never_given_up(mortal):
    mortal.end.write_text("always")
    wait_for(lambda: mortal.restarts > 7, "restarts")
    mortal.end.unlink()
    wait_for(lambda: mortal.ready, "a server that is ready")
    assert not [record for record in mortal.log if record.get("event") == "server_given_up"]
    found = restarts(mortal)
    assert [record["restarts"] for record in found] == list(range(1, mortal.restarts + 1))
    assert [record["next_try_s"] for record in found[:3]] == [0.0, 0.02, 0.02]
    assert {record["reason"] for record in found} == {"tritonserver ended with status 0"}


def test_why_a_server_cannot_be_started_anew_is_said_each_time_until_it_can(mortal, tmp_path):
    release, elsewhere = tmp_path / "release", tmp_path / "elsewhere"
    release.rename(elsewhere)
    mortal.end.write_text("once")
    wait_for(lambda: len(restarts(mortal)) > 3, "restarts")
    assert not mortal.ready
    assert mortal.pid is None
    found = restarts(mortal)[1:]
    assert all("could not be started anew" in record["reason"] for record in found)
    assert all(str(release) in record["reason"] for record in found)
    elsewhere.rename(release)
    wait_for(lambda: mortal.ready, "a server that is ready")


def test_who_was_connected_to_a_server_that_died_is_named_once(mortal):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection((LOCALHOST, mortal.ports.grpc))) for _ in range(12)]
        names = {f"{LOCALHOST}:{client.getsockname()[1]}" for client in clients}
        wait_for(lambda: len(peers(mortal.ports).connected) == 12, "all accepted")
        probed = len(mortal.probes)
        wait_for(lambda: len(mortal.probes) > probed + 2, "the supervisor to have seen them")
        for _ in range(2):
            before = mortal.restarts
            mortal.end.write_text("once")
            wait_for(lambda before=before: mortal.restarts > before and mortal.ready, "a server that is ready again")
        first, second = restarts(mortal)
    assert len(first["peers"]) == MOST_PEERS
    assert set(first["peers"]) < names
    assert (first["more_peers"], second["peers"], second["more_peers"]) == (2, [], 0)


def test_who_was_connected_is_named_even_if_the_last_look_came_while_the_process_died():
    gone, there, closed_by_all = ("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.3", 3)
    alive = Peers(connected=frozenset([there]), closed=frozenset([closed_by_all]))
    dying = Peers(closed=frozenset([there, gone, closed_by_all]))
    assert peers_at_end((alive, dying, dying)) == {there, gone}


def test_every_host_is_named_before_a_second_connection_of_any():
    crowd = [("10.0.0.9", port) for port in range(1000, 2100)]
    shown, more = named([*crowd, ("10.0.0.7", 5), ("fe80::1", 6)])
    assert shown[:4] == ["10.0.0.7:5", "10.0.0.9:1000", "[fe80::1]:6", "10.0.0.9:1001"]
    assert (len(shown), more) == (MOST_PEERS, 1102 - MOST_PEERS)


def test_restarts_are_bounded_where_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "probe", lambda *_, **__: Health())
    monkeypatch.setattr(supervisor, "executions_so_far", lambda url: {})
    end = tmp_path / "end"
    with fake_server(tmp_path, LISTENS_UNTIL_TOLD.format(end=end), probe_interval_s=0.05, max_restarts=0) as server:
        end.write_text("once")
        with pytest.raises(ServerStartError, match="given up: tritonserver ended with status 0"):
            server.wait(60)


def test_a_server_that_speaks_http_is_warned_of_and_others_do_not(tmp_path):
    log = []
    with pytest.raises(ServerStartError, match="--allow-http=false"):
        fake_server(tmp_path / "off", 'echo "$*"; exit 1', log.append).start()
    assert not [record for record in log if record.get("subject") == "http"]
    with pytest.raises(ServerStartError, match="--allow-http=true"):
        fake_server(tmp_path / "on", 'echo "$*"; exit 1', log.append, http=True).start()
    (warned,) = [record for record in log if record.get("subject") == "http"]
    assert (warned["level"], "proxy" in warned["reason"]) == ("warning", True)


def test_what_a_server_creates_is_its_users_alone_even_if_it_wants_it_public(tmp_path):
    code = "import os, resource, stat; f = os.open('new', os.O_CREAT | os.O_RDWR, 0o666); modes = [os.fstat(f).st_mode]"
    code += "; os.fchmod(f, 0o644); modes.append(os.fstat(f).st_mode); os.fchmod(f, 0o640)"
    code += "; print(*(oct(stat.S_IMODE(m)) for m in (*modes, os.fstat(f).st_mode)), *resource.getrlimit(7))"
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (128, 1000))
    command = [sys.executable, "-I", "-S", LAUNCH, sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, preexec_fn=few)
    assert done.stdout.split() == ["0o600", "0o600", "0o640", "1000", "1000"]


def test_a_program_that_is_not_there_is_named(tmp_path):
    command = [sys.executable, "-I", "-S", LAUNCH, tmp_path / "absent"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path}/absent: cannot be run: ")


def test_a_server_starts_once(tmp_path):
    server = fake_server(tmp_path, "exit 1")
    server.stop()
    with pytest.raises(RuntimeError, match="make a new one"):
        server.start()


PRINTED = """
import sys
from pathlib import Path
from m2ost_client.server.host import SHM, sweep_shared_memory
from tests.client.server.test_supervisor import fake_server
command = fake_server(Path(sys.argv[1]), "exit 1").print_command()
region = SHM / (command.partition("shm-region-prefix-name=")[2].split()[0] + "region")
region.touch()
sweep_shared_memory()
print(region.name, region.exists())
"""


def test_regions_of_a_printed_commands_server_are_never_swept(tmp_path):
    (line,) = in_namespaces(PRINTED, tmp_path)
    assert re.fullmatch(r"m2ost-printed-[0-9a-f]{8}-region True", line)


@pytest.mark.parametrize(("given", "arenas"), [(None, "1"), ("4", "4")])
def test_a_command_for_a_shell_says_where_the_metrics_are_and_how_memory_is_kept(tmp_path, monkeypatch, given, arenas):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    if given:
        monkeypatch.setenv("MALLOC_ARENA_MAX", given)
    server = fake_server(tmp_path, 'echo "$M2OST_METRICS_URL $M2OST_SLIDE_ROOTS $MALLOC_ARENA_MAX"')
    command = server.print_command()
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    url, roots, kept = done.stdout.split()
    assert (url, json.loads(roots), kept) == (server.metrics_url, {}, arenas)


@pytest.mark.parametrize("profile", ["cpu", "cpu-openvino", "python-gpu", "tensorrt"])
def test_a_profile_for_gpus_has_a_pool_on_each_and_no_pinned_memory(tmp_path, monkeypatch, profile):
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = fake_server(tmp_path, 'for a; do echo "$a"; done; echo "$CUPY_CACHE_DIR,$NVIDIA_TF32_OVERRIDE"')
    server.options = replace(server.options, profile=profile)
    done = subprocess.run(server.print_command(), shell=True, capture_output=True, text=True, check=True)
    pools = [line for line in done.stdout.splitlines() if "pool-byte-size" in line]
    cache = f"{tmp_path}/cache/m2ost/runtime/cupy"
    if profile.startswith("cpu"):
        assert (pools, done.stdout.splitlines()[-1]) == ([], ",")
    else:
        assert done.stdout.splitlines()[-1] == f"{cache},0"
        assert pools[:2] == [f"--cuda-memory-pool-byte-size={gpu}:{1 << 30}" for gpu in (0, 1)]
        assert pools[-1] == "--pinned-memory-pool-byte-size=0"


def test_what_is_served_beside_is_a_further_model_repository(tmp_path):
    server = fake_server(tmp_path, 'for a; do echo "$a"; done', beside=(folder_beside(tmp_path / "other"),))
    done = subprocess.run(server.print_command(), shell=True, capture_output=True, text=True, check=True)
    repositories = [line for line in done.stdout.splitlines() if line.startswith("--model-repository=")]
    assert repositories == [f"--model-repository={tmp_path / name}" for name in ("release", "other")]


def test_what_is_served_beside_must_have_the_profile(tmp_path):
    with pytest.raises(ServerStartError, match="other has no profile 'tensorrt'; it has cpu, onnxruntime"):
        fake_server(tmp_path, "exit", beside=(folder_beside(tmp_path / "other"),), profile="tensorrt")
