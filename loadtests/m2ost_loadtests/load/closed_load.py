"""A closed load from a program: Locust, without its web interface, in a process of its own.

In its own, because Locust replaces Python's threads and sockets by gevent's for the whole process.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from m2ost_client.credentials import Credentials

from ..errors import LoadTestError
from .load_report import LoadReport
from .locust_command import STARTUP_S, clean_environment, load_arguments, locust_command, read_report
from .workload import Load


def run_closed_load(
    address: str,
    slides: Sequence[str],
    *,
    users: int,
    seconds: float,
    load: Load | None = None,
    user_class: str = "SlideUser",
    metrics_url: str = "",
    processes: int = 0,
    credentials: Credentials | None = None,
) -> LoadReport:
    """Let users ask, wait for the answer, and ask again.

    Parameters
    ----------
    address : str
        ``host:port`` of the gRPC service.
    slides : sequence of str
        ``root/relative/path``, the most popular first.
    users : int
        How many ask at once.
    seconds : float
        For how long; requests in flight at the end are waited for.
    load : Load, optional
        What they ask for.
    user_class : str
        SlideUser, PatchesUser or IstarUser.
    metrics_url : str
        The server's metrics, for batch sizes and queue times.
    processes : int
        Locust's ``--processes``: workers to spread the users over.
    credentials : Credentials, optional
        What the server is shown, and whom the users trust.

    Raises
    ------
    TargetError
        If the load cannot be: no server, a model not loaded, a slide unknown, no spots.
    LoadTestError
        If Locust ends without a report; quotes its last lines.
    """
    load = load or Load()
    with tempfile.TemporaryDirectory(prefix="m2ost-load-") as folder:
        prefix = Path(folder) / "load"
        told = load_arguments(
            address, slides, users=users, seconds=seconds, load=load, prefix=prefix, metrics_url=metrics_url
        )
        command = [*locust_command(), *told]
        if processes:
            command += ["--processes", str(processes)]
        try:
            done = subprocess.run(
                [*command, user_class],
                env=clean_environment() | dict((credentials or Credentials()).to_environment()),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds + load.deadline_s + STARTUP_S,
            )
        except subprocess.TimeoutExpired as error:
            raise LoadTestError(f"{address}: the load did not end {error.timeout:.0f} s after it began") from error
        return read_report(prefix, done.returncode, done.stderr)
