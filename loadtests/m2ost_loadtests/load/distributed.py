"""A load from a master and several workers, each a process of its own, as they would be on several machines."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from m2ost_client.credentials import Credentials
from m2ost_client.server.host import Ports, held_ports

from ..errors import LoadTestError
from .load_report import LoadReport
from .locust_command import LOCUSTFILE, STARTUP_S, clean_environment, load_arguments, locust_command, read_report
from .workload import Load

_HERE = "127.0.0.1"
_LEAVE_S = 20.0
"""How long a worker may take to end once its master has, in seconds."""


def run_distributed(
    address: str,
    slides: Sequence[str],
    *,
    users: int,
    seconds: float,
    load: Load,
    workers: int = 2,
    metrics_url: str = "",
    credentials: Credentials | None = None,
    locustfile: Path = LOCUSTFILE,
    variables: Mapping[str, str] | None = None,
) -> LoadReport:
    """Have users, spread over workers, ask for spots of slides.

    Workers are told nothing but their master: that sends them the load, the address and the paths of ``credentials``.

    Parameters
    ----------
    address : str
        ``host:port`` of the gRPC service.
    slides : sequence of str
        ``root/relative/path``, the most popular first.
    users : int
        How many there are on all workers together.
    seconds : float
        For how long they ask; requests in flight at the end are waited for.
    load : Load
        What they ask for. With an ``arrival_rate`` the load is open.
    workers : int
    metrics_url : str
        The server's metrics, for batch sizes and queue times.
    credentials : Credentials, optional
        What the server is shown, and whom the users trust.
    locustfile : Path
        Has the users of ``m2ost_loadtests``.
    variables : mapping of str to str, optional
        Further environment variables of all processes.

    Raises
    ------
    TargetError
        If the load cannot be: no server, credentials that it refuses, a slide unknown, no spots.
    LoadTestError
        If Locust ends without a report, or nothing was asked; quotes its last lines.
    """
    shown = credentials or Credentials()
    pair = Credentials(certificate=shown.certificate, key=shown.key)  # Locust's own options of that name are its page's
    environment = clean_environment() | dict(pair.to_environment()) | dict(variables or {})
    with tempfile.TemporaryDirectory(prefix="m2ost-load-") as folder, ExitStack() as stack:
        prefix = Path(folder) / "load"
        port = str(stack.enter_context(held_ports(_HERE, Ports())).grpc)
        logs = [Path(folder) / f"worker-{index}.log" for index in range(workers)]
        for log in logs:
            command = [*locust_command(locustfile), "--worker", "--master-host", _HERE, "--master-port", port]
            stack.enter_context(_worker(command, environment, log))
        command = [*locust_command(locustfile), "--master", "--master-bind-host", _HERE, "--master-bind-port", port]
        command += ["--expect-workers", str(workers), "--expect-workers-max-wait", f"{STARTUP_S / 2:.0f}"]
        command += load_arguments(
            address, slides, users=users, seconds=seconds, load=load, prefix=prefix, metrics_url=metrics_url
        )
        command += [word for flag, path in _options(shown) for word in (flag, str(path))]
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds + load.deadline_s + STARTUP_S,
            )
        except subprocess.TimeoutExpired as error:
            raise LoadTestError(f"{address}: the load did not end {error.timeout:.0f} s after it began") from error
        report = read_report(prefix, done.returncode, done.stderr)
        if not report.offered["requests"]:
            said = [line for log in logs for line in log.read_text().splitlines()[-4:]]
            raise LoadTestError("no worker asked for anything:\n  " + "\n  ".join(said))
        return report


def _options(shown: Credentials) -> Iterator[tuple[str, Path]]:
    for flag, path in (("--tls-ca", shown.ca), ("--token-file", shown.token_file)):
        if path is not None:
            yield flag, path


@contextmanager
def _worker(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """A worker, which leaves by itself when its master does."""
    with log.open("w") as said:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        yield
        process.wait(_LEAVE_S)
    except subprocess.TimeoutExpired as error:
        raise LoadTestError(f"a worker of Locust has not ended {_LEAVE_S:.0f} s after its master") from error
    finally:
        process.kill()
        process.wait()
