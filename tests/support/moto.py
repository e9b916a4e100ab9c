"""An object storage of S3's kind on loopback: moto, in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.containers import BUILT
from tests.support.machine import wait_for

PROGRAM = BUILT / "moto" / "bin" / "moto_server"


def need_moto() -> None:
    """Skip the test where moto is absent; in CI it fails."""
    if not PROGRAM.exists():
        reason = f"absent: {PROGRAM} (deploy/install-test-tools.sh brings it)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@contextmanager
def moto(log: Path) -> Iterator[int]:
    """An empty storage; its port on 127.0.0.1."""
    command = [PROGRAM, "--host", "127.0.0.1", "--port", "0"]
    with log.open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        try:
            found = wait_for(lambda: re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text()), "moto")
            yield int(found[1])
        finally:
            process.kill()


def put(port: int, path: str, data: bytes = b"") -> None:
    """Put an object at ``/bucket/key``, or make a ``/bucket``."""
    signed = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"  # moto asks who it is, for no proof
    # The type that urllib would give, of a form, makes moto wait for ever.
    headers = {"Content-Type": "application/octet-stream", "Authorization": signed}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers, method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).close()
