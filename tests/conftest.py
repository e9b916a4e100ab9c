"""Real data for the tests, and what happens where it is absent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from m2ost_contract import EnginePlan

REPOSITORY = Path(__file__).parents[1]


def shared_file(relative: str) -> Path:
    """A file of the shared data. Absent, it skips the test by name; in CI it fails it."""
    root = Path(os.environ.get("M2OST_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    path = root / relative
    if not path.exists():
        reason = f"real data absent: {path} (set M2OST_SHARED_DATA)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@contextmanager
def kept_ports(count: int) -> Iterator[list[int]]:
    """So many ports that nobody listens on, and that nobody is given but the programs that are told them."""
    from m2ost_client.host import Ports, held_ports  # not in the server's environment

    with ExitStack() as kept:
        yield [kept.enter_context(held_ports("127.0.0.1", Ports())).grpc for _ in range(count)]


def wait_for(condition, what, seconds=40):
    """What a condition comes to, once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


def need_address(host: str) -> None:
    """Skip the test where this machine has no such address, as one without IPv6."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")


def in_namespaces(script: str, *arguments: object, **variables: str) -> list[str]:
    """Lines that a Python script prints with a /dev/shm of its own, which no server of this machine uses."""
    for command in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("this user may make no namespaces: unshare --mount is refused, with --user too")
    shell = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    command += ["sh", "-c", shell, "sh", sys.executable, "-c", script, *map(str, arguments)]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def engine_plan(**changes) -> EnginePlan:
    """An engine file as a manifest describes it: TensorRT's, for compute capability 8.9, read on its GPU."""
    plan = EnginePlan(
        toolkit="tensorrt",
        version="10.13.2.6",
        compute_capability="8.9",
        precision="fp16",
        file="m2ost/1/model-sm89.plan",
        sha256="",
        onnx_sha256="",
        size_bytes=9,
        rows=(1, 32, 256),
        network={"MATRIX_MULTIPLY HALF": 142},
        attention=36,
        weights_bytes=14_000_000,
        activation_bytes=None,
        inspected=True,
        engine={"gemm FP16": 100},
        fp32_size_bytes=None,
        driver="13.0",
    )
    return replace(plan, **changes)


@pytest.fixture(scope="session")
def svs() -> Path:
    return shared_file("wsi/CMU-1-Small-Region.svs")


@pytest.fixture(scope="session")
def dicom() -> Path:
    return shared_file("wsi/dicom_cmu1_small_region")


@pytest.fixture(scope="session")
def pyramid() -> Path:
    return shared_file("wsi/her2st_C2.tif")


@pytest.fixture(scope="session")
def section() -> Path:
    return shared_file("her2st/images/C2.jpg")


@pytest.fixture(scope="session")
def selection() -> Path:
    return shared_file("her2st/spots/C2_selection.tsv")


@pytest.fixture(scope="session")
def truncated_svs(svs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first half of a real slide: its directory is at the end, and gone."""
    path = tmp_path_factory.mktemp("bad") / "truncated.svs"
    data = svs.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


@pytest.fixture(scope="session")
def text_svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad") / "notes.svs"
    path.write_text("this is not a slide\n")
    return path


def error_of(*arguments) -> str:
    """What the command ends with, in words and with status 1, run in this process: one of its own takes seconds."""
    from m2ost_cli.main import app
    from m2ost_contract import M2OSTError
    from typer.testing import CliRunner

    error = CliRunner().invoke(app, [*map(str, arguments)]).exception
    assert isinstance(error, (M2OSTError, OSError)), (arguments, repr(error))
    return str(error)
