"""How a server's certificates are checked, how its token stays out of sight, and how its supervisor is let in."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from m2ost_cli.main import app
from m2ost_client import Credentials
from m2ost_client.errors import ServerStartError
from m2ost_client.server.argument_memory import hide_rest
from m2ost_client.server.command import LAUNCH, Command
from m2ost_client.server.doctor import Level
from m2ost_client.server.doctor.examine import check_security
from m2ost_client.server.host import SHM_PREFIX
from m2ost_client.server.probe import probe
from m2ost_client.server.process import ServerProcess
from m2ost_client.server.security import TOKEN_ARGUMENT, probe_access
from typer.testing import CliRunner

from tests.support.certificates import FOR_CLIENTS, FOR_SERVERS, Authority
from tests.support.releases import ENGINE

from .test_supervisor import fake_server

SECRET = "confidential"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(f"{SECRET}\n")
    return path


def pair_of(authority, *hosts, **options):
    pair = authority.sign("server", *hosts, **{"usage": FOR_SERVERS, **options})
    return {"certificate": pair.certificate, "key": pair.key}


def found(host="127.0.0.1", http=False, **files):
    return check_security(Credentials(**files), host=host, http=http)


def test_a_server_without_any_and_one_with_all(authority, token):
    assert found() == []
    (finding,) = found(ca=authority.file, token_file=token, **pair_of(authority, "a.org"))
    assert finding.level is Level.OK
    assert finding.message.startswith("TLS, certificates of clients, a token, to 20")


def test_what_keeps_a_server_from_starting(authority, token):
    for words, hosts, span, files in (
        ("expired on", ["a.org"], {"since": timedelta(days=-9), "until": timedelta(days=-1)}, {}),
        ("is for no name", [], {}, {}),
        ("is not for servers", ["a.org"], {"usage": FOR_CLIENTS}, {}),
        ("holds no certificate", ["a.org"], {}, {"ca": token}),
        ("which takes a server with --tls-cert", None, {}, {"ca": authority.file}),
    ):
        pair = {} if hosts is None else pair_of(authority, *hosts, **span)
        (finding,) = found(**pair, **files)
        assert finding.level is Level.ERROR
        assert words in finding.message
    token.chmod(0o644)
    (finding,) = found(token_file=token)
    assert f"chmod o= {token}" in finding.message


def test_http_would_go_round_them(authority, token):
    for files in (pair_of(authority, "a.org"), {"token_file": token}):
        assert "Triton's HTTP has no TLS" in str([f for f in found(http=True, **files) if f.level is Level.ERROR])


def test_what_had_better_be_mended(authority, token):
    (finding,) = found(**pair_of(authority, "a.org", until=timedelta(days=13)))
    assert finding.level is Level.WARNING
    assert "in 12 days" in finding.message
    assert found(**pair_of(authority, "a.org", until=timedelta(days=15)))[0].level is Level.OK
    (finding,) = found(host="0.0.0.0", token_file=token)
    assert finding.level is Level.WARNING
    assert "in plain text" in finding.message


@pytest.mark.parametrize("host", ["*.pods.example.org", "127.0.0.1"])
def test_a_supervisor_asks_its_server_whoever_signed_its_certificate_and_those_of_clients(authority, tmp_path, host):
    others = Authority(tmp_path, "others")
    files = pair_of(authority, host)
    access, roots = probe_access(Credentials(ca=others.file, **files), tmp_path)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        keys = [(files["key"].read_bytes(), files["certificate"].read_bytes())]
        credentials = grpc.ssl_server_credentials(keys, roots.read_bytes(), require_client_auth=True)
        address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        server.start()
        try:
            assert probe(address, [ENGINE], access=access).words == "Method not found!"
        finally:
            server.stop(None).wait()


SLEEPER = "import sys, time; print('begun', flush=True); time.sleep(60)"


def sleeper(*arguments):
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, *arguments], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    return process


def test_the_rest_of_an_argument_is_overwritten_and_no_other():
    process = sleeper("--before=1", f"--token={SECRET}", f"--after={SECRET}")
    try:
        hide_rest(process.pid, "--token=")
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[3:6]
        assert shown == [b"--before=1", b"--token=" + b"*" * len(SECRET), f"--after={SECRET}".encode()]
        with pytest.raises(OSError, match="none of the arguments begins with --other="):
            hide_rest(process.pid, "--other=")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


TRITONS_LINE = 'I1130 12:00:00.000000 7 server.cc:1] "one of its own"'


def run_with_secret(tmp_path, argument, seconds=10.0):
    """A process that says a line of Triton's and then sleeps; it, and its records, once there are two or it ended."""
    records, said = [], threading.Event()

    def on_log(record):
        records.append(record)
        if record["source"] != "tritonserver":
            said.set()

    code = f"import time; print('a loader', flush=True); time.sleep(0.2); print('''{TRITONS_LINE}''', flush=True)"
    process = ServerProcess(
        Command([sys.executable, "-c", f"{code}; time.sleep(60)", argument], {}),
        shm_prefix=f"{SHM_PREFIX}test-",
        runtime=tmp_path / "runtime",
        on_log=on_log,
        secret_after=TOKEN_ARGUMENT,
    )
    assert said.wait(seconds)
    return process, records


def test_a_servers_token_is_gone_with_its_first_line_of_log(tmp_path):
    process, records = run_with_secret(tmp_path, TOKEN_ARGUMENT + SECRET)
    try:
        assert SECRET.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert not process.shows_secret
        assert process.poll() is None
    finally:
        process.end(0)
    assert [record["message"] for record in records] == ["a loader", "one of its own"]


def test_a_server_whose_token_cannot_be_overwritten_is_killed(tmp_path):
    process, records = run_with_secret(tmp_path, "--something=else")
    until = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert process.poll() == -9
    process.end(0)
    assert process.shows_secret
    (event,) = [record for record in records if record.get("event") == "token_not_hidden"]
    assert "every user of this machine could read it" in event["error"]


def test_the_launcher_adds_the_secret_that_its_own_command_lacks(token, tmp_path):
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    command = [sys.executable, "-I", "-S", LAUNCH, "--end-with", token, "--key=", sys.executable, "-c", code, "first"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["first", f"--key={SECRET}"]
    command[5] = tmp_path / "absent"
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "absent: cannot be read" in done.stderr) == (1, True)


def test_a_command_that_is_printed_holds_no_token_and_a_bad_key_keeps_a_server_from_starting(
    authority, token, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    files = pair_of(authority, "a.org")
    near = {name: Path(os.path.relpath(path)) for name, path in {**files, "ca": authority.file}.items()}
    server = fake_server(tmp_path, "exit 7", credentials=Credentials(**near, token_file=Path("token")))
    printed = server.print_command()
    assert SECRET not in printed
    for words in (
        f"--end-with {token} {TOKEN_ARGUMENT}",
        f"--grpc-server-cert={files['certificate']}",
        f"--grpc-server-key={files['key']}",
        f"--grpc-use-ssl-mutual=1 --grpc-root-cert={authority.file}",
    ):
        assert words in printed
    files["key"].chmod(0o644)
    with pytest.raises(ServerStartError, match=r"security: .*server\.key: every user of this machine has access to it"):
        server.start()


def test_the_doctor_looks_at_them(token):
    token.chmod(0o644)
    done = CliRunner().invoke(app, ["doctor", "--json", "--profile", "absent", "--token-file", str(token)])
    said = [f["message"] for f in json.loads(done.stdout)["findings"] if f["subject"] == "security"]
    assert (done.exit_code, len(said)) == (1, 1)
    assert f"chmod o= {token}" in said[0]
