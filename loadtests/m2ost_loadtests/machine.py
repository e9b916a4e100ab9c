"""Where a figure was measured, and how it is written down."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Processor, cores this process may use, and versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_fp16")
"""Flags of ``/proc/cpuinfo`` that decide how fast matrix products are, from oldest to youngest."""


def cpu_instructions() -> list[str]:
    """Those of ``INSTRUCTIONS`` that the processor has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
    return [name for name in INSTRUCTIONS if name in flags]


RUNTIMES = ("onnxruntime", "numpy", "tritonclient", "grpcio")


def fingerprint(server: str) -> dict[str, Any]:
    """What must be the same for two absolute timings to be comparable.

    Parameters
    ----------
    server : str
        Name and version of the server that was measured.
    """
    machine = describe_machine()
    facts = {name: machine[name] for name in ("processor", "cores", "python")}
    return {**facts, "server": server, **versions(RUNTIMES)}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Package → its version, or ``not installed``."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def write_report(report: dict[str, Any], folder: Path, name: str) -> Path:
    """Write ``report`` as ``folder/name.json`` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path
