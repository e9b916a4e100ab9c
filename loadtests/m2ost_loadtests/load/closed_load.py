"""A closed load from a program: Locust, without its web interface, in a process of its own.

In its own, because Locust replaces Python's threads and sockets by gevent's for the whole process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from m2ost_client.credentials import Credentials

from ..errors import LoadTestError, TargetError
from .load_report import LoadReport
from .workload import Load

LOCUSTFILE = Path(__file__).with_name("locustfile.py")

_STARTUP_S = 120.0
_ERROR = "error: "


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
        command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
        command += ["--host", address, "--users", str(users), "--spawn-rate", "100", "--run-time", f"{seconds:g}s"]
        command += ["--stop-timeout", f"{load.deadline_s:g}", "--csv", str(prefix), "--metrics-url", metrics_url]
        command += [argument for slide in slides for argument in ("--slide", slide)]
        command += _options(load)
        if processes:
            command += ["--processes", str(processes)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOCUST_", "M2OST_"))}
        try:
            environment |= (credentials or Credentials()).to_environment()
            done = subprocess.run(
                [*command, user_class],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds + load.deadline_s + _STARTUP_S,
            )
        except subprocess.TimeoutExpired as error:
            raise LoadTestError(f"{address}: the load did not end {error.timeout:.0f} s after it began") from error
        report = prefix.with_name("load_spots.json")
        if report.exists():
            return LoadReport.read(report)
    lines = done.stderr.strip().splitlines() or ["no output"]
    for line in lines:
        if line.startswith(_ERROR):
            raise TargetError(line.removeprefix(_ERROR))
    raise LoadTestError(
        f"Locust ended with status {done.returncode} and without a report:\n  " + "\n  ".join(lines[-8:])
    )


def _options(load: Load) -> list[str]:
    options: list[str] = []
    for name, value in asdict(load).items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            options.append(flag)
        elif value is not None and value is not False:
            options += [flag, f"{value}"]
    return options
