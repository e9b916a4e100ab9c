"""Whoever reaches a server's ports, or may list its processes, changes nothing in it and keeps nobody from it."""

import contextlib
import json
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import psutil
import pytest
import tritonclient.grpc as triton
from m2ost_client import ServerOptions, TritonServer
from m2ost_client.server.command import RESTRICTED_APIS
from m2ost_client.server.host import SHM
from tritonclient.grpc import service_pb2

from tests.support.machine import wait_for

from .servers import by_server, heed_ctrl_c, raw_request

SLIDE = "wsi/CMU-1-Small-Region.svs"
SERVICE = "/inference.GRPCInferenceService/"
PREFIX = "triton-grpc-protocol-"
RESTRICTED_CALLS = (
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelStatistics"),
    *("TraceSetting", "LogSettings"),
    *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
    *("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
)
RESTRICTED_PATHS = (
    *("POST /v2/repository/index", "POST /v2/repository/models/m2ost/load", "POST /v2/repository/models/m2ost/unload"),
    *("GET /v2/models/m2ost/stats", "GET /v2/trace/setting", "POST /v2/trace/setting", "GET /v2/logging"),
    *("POST /v2/logging", "GET /v2/systemsharedmemory/status", "POST /v2/systemsharedmemory/region/a/register"),
    *("POST /v2/systemsharedmemory/unregister", "GET /v2/cudasharedmemory/status"),
    *("POST /v2/cudasharedmemory/region/a/register", "POST /v2/cudasharedmemory/unregister"),
)
HEADERS, RESET, SETTINGS, GOAWAY = 1, 3, 4, 7
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
IDLE = 1100


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def raw_call(port, method, *headers):
    """What a gRPC call comes to that a program sends byte by byte, with headers that no library would: its last frame.

    Returns the frame's kind and its payload; None where the server hung up.
    """

    def text(value):
        assert len(value) < 127
        return bytes([len(value)]) + value

    fields = [(":method", "POST"), (":scheme", "http"), (":path", SERVICE + method), (":authority", "a")]
    fields += [("te", "trailers"), ("content-type", "application/grpc"), *headers]
    block = b"".join(b"\0" + text(name.encode()) + text(value.encode()) for name, value in fields)
    with socket.create_connection(("127.0.0.1", port), 30) as sock, sock.makefile("rb") as answer:
        sock.sendall(PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, 4, 1, block) + frame(0, 1, 1, bytes(5)))
        while head := answer.read(9):
            payload = answer.read(int.from_bytes(head[:3], "big"))
            if head[3] in (RESET, GOAWAY) or (head[3] == HEADERS and head[4] & 1):
                return head[3], payload
    return None


def raw_get(port, request, *headers):
    """The answer to an HTTP request that a program sends byte by byte."""
    lines = [f"{request} HTTP/1.1", "Host: a", "Content-Length: 2", "Connection: close", *headers, "", "{}"]
    with socket.create_connection(("127.0.0.1", port), 30) as sock, sock.makefile("rb") as answer:
        sock.sendall("\r\n".join(lines).encode())
        return answer.read().decode()


def restricted_options(server):
    """What a command line that every user may read says: the APIs, and the header and the value that open them."""
    words = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
    found = [word.partition("=")[2] for word in words if word.startswith(("--grpc-restricted", "--http-restricted"))]
    return [re.fullmatch("([^:]*):(.*)=(.*)", option).groups() for option in found]


def test_nobody_who_reads_the_command_line_opens_a_restricted_api(http_server):
    options = restricted_options(http_server)
    assert [set(apis.split(",")) for apis, _, _ in options] == [set(RESTRICTED_APIS)] * 2
    (_, header, value), port = options[0], http_server.ports.grpc
    assert raw_call(port, "ServerLive")[1].endswith(b"grpc-status\x010"), "a call that is open to all"
    for method in RESTRICTED_CALLS:
        kind, answer = raw_call(port, method)
        assert (kind, b"This protocol is restricted" in answer) == (HEADERS, True), method
        for name in (header, header.lower(), header.split(":")[0]):
            for prefix in (PREFIX, ""):
                ended = raw_call(port, method, (prefix + name, value))
                opened = ended is not None and ended[0] == HEADERS and b"is restricted" not in ended[1]
                assert not opened, (method, name, ended)
    with grpc.insecure_channel(http_server.address, [("grpc.enable_http_proxy", 0)]) as channel:
        index = channel.unary_unary(SERVICE + "RepositoryIndex")
        with pytest.raises((ValueError, grpc.RpcError)):
            index(b"", metadata=[(PREFIX + header, value)], timeout=30)
    for request in RESTRICTED_PATHS:
        for given in ([], [f"{header}: {value}"], [f"{header.split(':')[0]}: {header.split(':')[1]}: {value}"]):
            assert "This API is restricted" in raw_get(http_server.ports.http, request, *given), (request, given)
    assert raw_get(http_server.ports.http, "GET /v2/health/live", f"{header}: {value}").startswith("HTTP/1.1 200")


def test_no_region_is_ever_readable_by_others(narrow_release, roots):
    server = TritonServer(ServerOptions(release=narrow_release, roots=roots))
    modes, over = {}, threading.Event()

    def watch():
        while not over.is_set():
            for region in SHM.glob(f"{server.shm_prefix}*"):
                with contextlib.suppress(FileNotFoundError):
                    modes.setdefault(region.name, set()).add(region.stat().st_mode & 0o777)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with server:
            assert not by_server(server.address, SLIDE, [(800, 800)])[1].any()
    finally:
        over.set()
        watcher.join()
    assert len(modes) == 4
    assert set.union(*modes.values()) == {0o600}


def test_a_stranger_cannot_pass_for_the_supervisors_probe(http_server, http_log):
    with triton.InferenceServerClient(http_server.address) as client:
        client.infer("m2ost_slide", raw_request([SLIDE], [(800, 800)]), request_id="m2ost-probe-1")

    def ids(level):
        return {
            record["request_id"] for record in list(http_log) if "request_id" in record and record["level"] == level
        }

    wait_for(lambda: "m2ost-probe-1" in ids("info"), "the stranger's request in the log")
    assert not ids("debug"), "the supervisor's probes leave no line"


def test_what_a_compressed_request_grew_to_is_given_back(http_server):
    """Two of eight may stay for the next request to replace; Triton's default keeps eight."""
    process = psutil.Process(http_server.pid)
    request = service_pb2.ModelInferRequest(model_name="absent", raw_input_contents=[bytes(64 << 20)])
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1)]
    before = process.memory_info().rss
    with grpc.insecure_channel(http_server.address, options) as channel:
        infer = channel.unary_unary(SERVICE + "ModelInfer", service_pb2.ModelInferRequest.SerializeToString)
        for _ in range(8):
            with pytest.raises(grpc.RpcError, match="unknown model"):
                infer(request, timeout=120, compression=grpc.Compression.Gzip)
    wait_for(lambda: process.memory_info().rss < before + (192 << 20), "memory given back")


def test_a_client_that_is_gone_without_a_word_is_dropped(http_server):
    with socket.create_connection(("127.0.0.1", http_server.ports.grpc), 60) as sock:
        sock.sendall(PREFACE + frame(SETTINGS, 0, 0))
        while sock.recv(1 << 16):  # the server's pings stay without an answer
            pass


@contextlib.contextmanager
def idle_connections(*ports):
    """So many connections that nobody uses to each of some ports."""
    needed, (soft, hard) = 2 * IDLE * len(ports), resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"this test opens {needed} files, and ulimit -Hn is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    try:
        with contextlib.ExitStack() as stack:
            for port in ports:
                for _ in range(IDLE):
                    sock = stack.enter_context(socket.socket())
                    sock.setblocking(False)  # a server that accepts no more keeps some waiting
                    sock.connect_ex(("127.0.0.1", port))
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_server_serves_beside_idle_connections(http_server):
    with idle_connections(http_server.ports.grpc, http_server.ports.metrics):
        assert not by_server(http_server.address, SLIDE, [(800, 800)])[1].any()


def test_a_server_short_of_files_recovers_when_idle_connections_go_and_its_log_stays_small(narrow_release, svs):
    def few_files():
        heed_ctrl_c()
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))

    command = [Path(sys.executable).with_name("m2ost"), "serve", narrow_release, "--slides", f"wsi={svs.parent}"]
    command += ["--grpc-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, preexec_fn=few_files)
    said, ready = [], threading.Event()

    def read():
        for line in process.stdout:
            said.append(json.loads(line))
            if said[-1].get("event") == "server_ready":
                ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(60)
        (record,) = [record for record in said if record.get("event") == "server_ready"]
        address = record["address"]
        with idle_connections(*(int(re.search(r"\.1:(\d+)", url)[1]) for url in (address, record["metrics"]))):
            wait_for(lambda: [r for r in said if r.get("event") == "log_left_out"], "lines left out")
            time.sleep(2)
        assert not by_server(address, SLIDE, [(800, 800)])[1].any()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        reader.join()
    assert process.returncode == 0
    assert not [record for record in said if record.get("event") == "server_restarted"]
    (warned,) = [record for record in said if record.get("subject") == "limits"]
    assert "may open 1,024 files" in warned["reason"]
    left_out = [record for record in said if record.get("event") == "log_left_out"]
    assert sum(record["lines"] for record in left_out) > 1000
    assert len(json.dumps(said)) < 1 << 18


def test_a_request_that_ends_the_server_names_its_sender_and_the_server_comes_back(narrow_release, roots):
    log = []
    nested = b"[" * 100_000 + b"]" * 100_000
    bomb = b'{"inputs":[{"name":"CENTER","shape":[1,2],"datatype":"INT32","data":%s}]}' % nested
    options = ServerOptions(release=narrow_release, roots=roots, http=True, probe_interval_s=0.5)
    with TritonServer(options, on_log=log.append) as server:
        with socket.create_connection(("127.0.0.1", server.ports.http), 60) as sock:
            head = f"POST /v2/models/m2ost_slide/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(bomb)}\r\n\r\n"
            sock.sendall(head.encode() + bomb)
            wait_for(lambda: server.restarts == 1, "restart")
            sender = f"127.0.0.1:{sock.getsockname()[1]}"
        (event,) = [record for record in log if record.get("event") == "server_restarted"]
        assert sender in event["peers"]
        assert event["reason"] == f"tritonserver ended with status -{int(signal.SIGSEGV)}"
        wait_for(lambda: server.ready, "a server that is ready")
        assert not by_server(server.address, SLIDE, [(800, 800)])[1].any()
    (warned,) = [record for record in log if record.get("subject") == "http"]
    assert "nested JSON" in warned["reason"]


def test_without_being_asked_for_nobody_listens_for_http(narrow_server):
    listening = {c.laddr.port for c in psutil.Process(narrow_server.pid).net_connections("tcp") if c.status == "LISTEN"}
    assert listening == {narrow_server.ports.grpc, narrow_server.ports.metrics}
    assert narrow_server.ports.http is None
