"""TLS, certificates of clients and a token: every way to a real server, and two servers behind one name."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from m2ost_client import AccessRefused, Ports, TritonServer
from m2ost_client.errors import ReleasesMixed
from m2ost_client.servers_behind import check_same
from m2ost_loadtests.errors import TargetError
from m2ost_loadtests.load.closed_load import run_closed_load
from m2ost_loadtests.load.distributed import run_distributed
from m2ost_loadtests.load.workload import Load
from m2ost_preprocess.network import channel_options
from tritonclient.utils import InferenceServerException

from tests.support.machine import in_namespaces, wait_for
from tests.support.releases import ENGINE

from .archives import rescore
from .servers import by_server, metrics_of

M2OST = Path(sys.executable).with_name("m2ost")
SLIDE = "wsi/CMU-1-Small-Region.svs"
CENTERS = [(700 + 3 * i, 900 + 2 * i) for i in range(200)]


def m2ost(*arguments, **variables):
    """Run the command; (exit status, all that it said, seconds)."""
    began = time.monotonic()
    command, environment = [M2OST, *map(str, arguments)], {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


def options_of(credentials):
    names = {"ca": "--tls-ca", "certificate": "--tls-cert", "key": "--tls-key", "token_file": "--token-file"}
    return [part for name, path in credentials.given().items() for part in (names[name], path)]


def test_one_slide_and_an_archive_by_commands_and_no_word_of_the_token(secured, archive_slides, tmp_path):
    address = secured.server.address
    arguments = ("predict", SLIDE, "--server", address, "--out", tmp_path / "one", "--pitch-um", 200, "--report")
    status, said, _ = m2ost(*arguments, *options_of(secured.known))
    assert status == 0, said
    rows = "".join(f"{row.slide_id},{row.path},{row.mpp}\n" for row in archive_slides[1][1:3])
    (tmp_path / "slides.csv").write_text(f"slide_id,path,mpp\n{rows}")
    arguments = ("rescore", tmp_path / "slides.csv", "--server", address, "--out", tmp_path / "archive", "--report")
    status, also, _ = m2ost(*arguments, **secured.known.to_environment())
    assert status == 0, also
    assert "2 of 2 slides done" in also
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".h5ad", ".json", ".html", ".parquet"} <= {path.suffix for path in written}
    assert secured.token not in said + also
    assert not [path for path in written if secured.token.encode() in path.read_bytes()]


def test_the_token_is_in_no_list_of_processes_and_no_log(secured):
    shown = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            shown += [*process.cmdline()]
    assert any("authorization=***" in argument for argument in shown)
    assert secured.token not in "\0".join(shown)
    assert secured.token not in str(secured.log)
    assert not [record for record in secured.log if record["level"] == "error"]
    assert secured.token not in secured.server.print_command()


@pytest.mark.parametrize(
    ("left_out", "given", "words"),
    [
        ((), {"token_file": "another"}, "refuses the token of"),
        (("token_file",), {}, "wants a token; give --token-file"),
        (("certificate", "key"), {}, "wants a certificate of its clients; give --tls-cert"),
        ((), {"certificate": "stranger.crt", "key": "stranger.key"}, "refuses the certificate"),
        ((), {"ca": "strangers.pem"}, "was not signed by"),
        (("ca", "certificate", "key", "token_file"), {}, "speaks TLS; give --tls-ca"),
    ],
)
def test_who_is_refused_is_told_why_at_once(secured, archive_slides, tmp_path, left_out, given, words):
    files = {name: secured.folder / file for name, file in given.items()} | dict.fromkeys(left_out)
    credentials = replace(secured.known, **files)
    began = time.monotonic()
    for ask in (
        lambda: by_server(secured.server.address, SLIDE, CENTERS[:1], credentials=credentials),
        lambda: rescore(archive_slides[1], tmp_path / "out", [secured.server], credentials=credentials),
    ):
        with pytest.raises(AccessRefused, match=words) as caught:
            ask()
        assert secured.token not in str(caught.value)
    assert time.monotonic() - began < 10, "retries last for half a minute and more"


def test_the_command_says_so_and_ends_with_status_1(secured, tmp_path):
    credentials = replace(secured.known, token_file=secured.folder / "another")
    arguments = ("predict", SLIDE, "--server", secured.server.address, "--out", tmp_path)
    status, said, seconds = m2ost(*arguments, *options_of(credentials))
    assert status == 1
    assert f"error: {secured.server.address}: the server refuses the token of" in said
    assert seconds < 30


def test_load_tests(secured):
    load = Load(spots=2, deadline_s=30)
    ask = {"users": 2, "seconds": 1, "load": load}
    report = run_closed_load(secured.server.address, [SLIDE], credentials=secured.known, **ask)
    assert report.all["requests"] > report.all["failed"] == 0
    assert report.server.startswith("triton ")
    assert secured.token not in report.to_json()
    told = run_distributed(secured.server.address, [SLIDE], credentials=secured.known, **ask)
    assert told.all["requests"] > told.all["failed"] == told.all["unanswered_at_the_end"] == 0
    wrong = replace(secured.known, token_file=secured.folder / "another")
    with pytest.raises(TargetError, match="refuses the token of"):
        run_closed_load(secured.server.address, [SLIDE], credentials=wrong, **ask)


def test_without_the_token_nothing_but_health_is_answered(secured):
    address = secured.server.address
    access = replace(secured.known, token_file=None).open(address)
    with triton.InferenceServerClient(address, creds=access.channel, channel_args=channel_options(address)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        for ask in (client.get_server_metadata, lambda: client.get_model_config("m2ost"), client.get_log_settings):
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                ask()


def test_each_server_behind_a_name_is_asked_by_the_certificate_of_the_name(secured):
    """One that could not be asked would count as away."""

    async def read(client):
        await client.get_model_config("m2ost")
        return ENGINE

    meant, address = replace(ENGINE, release_sha256="d" * 64), f"dns:///127.0.0.2:{secured.server.ports.grpc}"
    with pytest.raises(ReleasesMixed, match=r"127\.0\.0\.2:\d+ is one of them, and it serves release cccccccccccc"):
        asyncio.run(check_same(address, meant, secured.known, read))


BEHIND_ONE_NAME = """
import asyncio, subprocess, sys
import numpy as np
from m2ost_client import Credentials, SpotStream, StreamOptions
from tests.e2e.servers import by_server
from tests.e2e.test_secure import CENTERS, SLIDE

hosts, address, out = sys.argv[1:]
subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
options = {"credentials": Credentials.from_environment(), "batch_rows": 1, "window": 4}
expression, status = by_server(address, SLIDE, CENTERS * 3, **options)
np.savez(out, expression=expression, status=status)
"""


def test_two_servers_behind_one_name_share_the_work_and_one_that_dies_loses_nothing(secured, tmp_path):
    first, spots = secured.server, "m2ost_tiler_spots_total{slide_tiler}"
    expected, _ = by_server(first.address, SLIDE, CENTERS, credentials=secured.known)
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n127.0.0.2 pods.example\n127.0.0.3 pods.example\n")
    options = replace(secured.options, host="127.0.0.3", ports=Ports(grpc=first.ports.grpc))
    with TritonServer(options) as second:
        before, killed = metrics_of(first)[spots], []

        def kill():
            wait_for(lambda: metrics_of(second)[spots] > 20, "work of the second server")
            killed.append(metrics_of(second)[spots])
            os.kill(second.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        address = f"dns:///pods.example:{first.ports.grpc}"
        variables = secured.known.to_environment()
        in_namespaces(BEHIND_ONE_NAME, tmp_path / "hosts", address, tmp_path / "out.npz", **variables)
        killer.join()
        by_first = metrics_of(first)[spots] - before
    assert killed
    assert killed[0] < 3 * len(CENTERS) / 2, "the second server had done its half before it died"
    assert by_first > killed[0]
    found = np.load(tmp_path / "out.npz")
    assert not found["status"].any()
    np.testing.assert_allclose(found["expression"], np.tile(expected, (3, 1)), rtol=0, atol=1e-5)
