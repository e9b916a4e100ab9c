"""Locust's command line and environment from a load, and the report that it leaves."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import LoadTestError, TargetError
from .load_report import LoadReport
from .workload import Load

LOCUSTFILE = Path(__file__).with_name("locustfile.py")

STARTUP_S = 120.0
"""How long Locust may take beside the load itself and the last answers, in seconds."""

_ERROR = "error: "


def locust_command(locustfile: Path = LOCUSTFILE) -> list[str]:
    """Locust with the users of a file, in this Python environment."""
    return [sys.executable, "-m", "locust", "-f", str(locustfile)]


def load_arguments(
    address: str, slides: Sequence[str], *, users: int, seconds: float, load: Load, prefix: Path, metrics_url: str
) -> list[str]:
    """Arguments of the process that leads a load; its report is written to ``{prefix}_spots.json``."""
    arguments = ["--headless", "--only-summary", "--host", address, "--users", str(users), "--spawn-rate", "100"]
    arguments += ["--run-time", f"{seconds:g}s", "--stop-timeout", f"{load.deadline_s:g}", "--csv", str(prefix)]
    arguments += ["--metrics-url", metrics_url]
    arguments += [argument for slide in slides for argument in ("--slide", slide)]
    for name, value in asdict(load).items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            arguments.append(flag)
        elif value is not None and value is not False:
            arguments += [flag, f"{value}"]
    return arguments


def clean_environment() -> dict[str, str]:
    """This process's environment without what would set an option."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "M2OST_"))}


def read_report(prefix: Path, status: int, said: str) -> LoadReport:
    """What a load came to.

    Parameters
    ----------
    prefix : Path
        As :func:`load_arguments` was given it.
    status : int
        Locust's exit status.
    said : str
        What it wrote to its standard error.

    Raises
    ------
    TargetError
        If the load could not be.
    LoadTestError
        If there is no report; quotes Locust's last lines.
    """
    report = prefix.with_name(f"{prefix.name}_spots.json")
    if report.exists():
        return LoadReport.read(report)
    lines = said.strip().splitlines() or ["no output"]
    for line in lines:
        if line.startswith(_ERROR):
            raise TargetError(line.removeprefix(_ERROR))
    raise LoadTestError(f"Locust ended with status {status} and without a report:\n  " + "\n  ".join(lines[-8:]))
