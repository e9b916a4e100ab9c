"""Gather the facts: of this machine, and of the server's environment by its own interpreter."""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
from pathlib import Path
from typing import Any

from m2ost_preprocess.control_groups import available_memory_bytes, cpus, tasks_left

from ..host import SHM, of_all_processes
from ..installation import AS_A_MODEL, Installation
from .facts import Gpu, HostFacts, ServerFacts

_NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=name,compute_cap,memory.total,driver_version",
    "--format=csv,noheader,nounits",
)
NVIDIA_SMI_TIMEOUT_S = 20.0
PROBE_TIMEOUT_S = 60.0
"""Longest time for the server's interpreter to load its libraries, in seconds."""


class CannotAsk(Exception):
    """The server's interpreter gave no answer."""


def host_facts(*, ask_driver: bool) -> HostFacts:
    """The machine's facts.

    GPUs come from ``nvidia-smi`` and not from a binding of NVML: it is a process of its own, so that a driver that
    hangs costs a time limit and not this process; it comes with the driver; and the client needs no package for it.

    Parameters
    ----------
    ask_driver : bool
        Whether to ask NVIDIA's driver for its GPUs.
    """
    shm = os.statvfs(SHM)
    facts: dict[str, Any] = {
        "shm_bytes": shm.f_bavail * shm.f_frsize,
        "memory_bytes": available_memory_bytes(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "open_files": _limit(resource.RLIMIT_NOFILE, hard=True),
        "threads_left": threads_left(),
        "cpus": cpus(),
        "address_space_bytes": _limit(resource.RLIMIT_AS),
    }
    if not ask_driver:
        return HostFacts(**facts)
    try:
        answer = subprocess.run(
            _NVIDIA_SMI, capture_output=True, encoding="utf-8", errors="replace", timeout=NVIDIA_SMI_TIMEOUT_S
        )
    except FileNotFoundError:
        return HostFacts(**facts, gpu_error="no nvidia-smi, hence no NVIDIA driver")
    except (OSError, subprocess.TimeoutExpired) as error:
        return HostFacts(**facts, gpu_error=f"nvidia-smi does not answer: {error}")
    if answer.returncode != 0:
        words = " ".join((answer.stdout + answer.stderr).split())
        return HostFacts(**facts, gpu_error=f"nvidia-smi: {words}")
    gpus, driver = read_nvidia_smi(answer.stdout)
    return HostFacts(**facts, gpus=gpus, driver=driver, gpu_error="" if gpus else "nvidia-smi names no GPU")


def read_nvidia_smi(table: str) -> tuple[tuple[Gpu, ...], str]:
    """GPUs and driver out of the answer of ``nvidia-smi``."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(table.splitlines()) if len(row) == 4]
    gpus = tuple(Gpu(name, capability, _mib(memory)) for name, capability, memory, _ in rows)
    return gpus, rows[0][3] if rows else ""


def _mib(text: str) -> int:
    """MiB as bytes; 0 where the driver does not say, as on a chip that shares the host's memory."""
    return int(text) << 20 if text.isdigit() else 0


def threads_left() -> int | None:
    """Threads that this user or its control group may start beside those that run; None without a limit."""
    left = []
    limit = _limit(resource.RLIMIT_NPROC)
    if limit is not None and os.getuid() != 0:  # root's are not counted
        left.append(limit - _threads_of(os.getuid()))
    most = tasks_left()
    if most is not None:
        left.append(most)
    return max(0, min(left)) if left else None


def _threads_of(user: int) -> int:
    threads = 0
    for _, status in of_all_processes("status"):
        fields = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
        if fields["Uid"][0] == str(user):
            threads += int(fields["Threads"][0])
    return threads


def _limit(kind: int, *, hard: bool = False) -> int | None:
    limit = resource.getrlimit(kind)[hard]
    return None if limit == resource.RLIM_INFINITY else limit


def server_facts(installation: Installation, *, probe: bool, bf16: bool = False) -> ServerFacts:
    """The facts of the server's environment.

    Parameters
    ----------
    installation : Installation
        Whose interpreter is asked.
    probe : bool
        Also load ONNX Runtime, CuPy and TensorRT and ask them: a second or two.
    bf16 : bool
        Also ask OpenVINO for bfloat16: a second.

    Raises
    ------
    CannotAsk
        If the interpreter does not answer; with its words.
    """
    python = installation.interpreter()
    if python is None:
        raise CannotAsk("there is no python3 on PATH, which Triton's Python backend runs its models in")
    script = str(Path(__file__).with_name("ask_server.py"))
    command = [str(python), *AS_A_MODEL, script, *(["--probe"] if probe else []), *(["--bf16"] if bf16 else [])]
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PROBE_TIMEOUT_S,
            env={**os.environ, **installation.environment, "LC_ALL": "C"},
        )
        raw = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotAsk(f"{python} does not answer: {error}") from error
    except (IndexError, ValueError) as error:
        words = answer.stderr.strip().splitlines()
        raise CannotAsk(f"{python} ended with status {answer.returncode}: {words[-1] if words else ''}") from error
    raw["python"] = str(python)
    raw["providers"] = tuple(raw.get("providers", ()))
    raw["gpus"] = tuple(Gpu(**gpu) for gpu in raw.get("gpus", ()))
    return ServerFacts(**raw)
