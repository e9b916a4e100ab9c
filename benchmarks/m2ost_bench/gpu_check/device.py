"""The device that is checked, what it is, and how time is taken on it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from m2ost_loadtests.machine import describe_machine, versions
from m2ost_loadtests.rounds import Rounds, interleave
from m2ost_serving import devices

from .parts import Skip, need

_GPU_FACTS = (
    "name,driver_version,compute_cap,memory.total,clocks.max.sm,clocks.max.memory,power.limit,"
    "pcie.link.gen.current,pcie.link.width.current"
)
_GPU_PACE = "clocks.current.sm,clocks.current.memory,power.draw,temperature.gpu"
_DISTRIBUTIONS = (
    "torch", "numpy", "pillow", "cupy-cuda12x", "cupy-cuda13x", "cucim-cu12", "cucim-cu13", "openslide-python",
    "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings", "safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    """What is checked.

    Parameters
    ----------
    kind : {"cuda", "cpu"}
        A GPU, or the processor in its place.
    index : int
        Which GPU, as CUDA numbers them.
    """

    kind: str
    index: int = 0

    @property
    def torch(self) -> str:
        """PyTorch's name of it."""
        return f"cuda:{self.index}" if self.kind == "cuda" else "cpu"

    def arrays(self) -> devices.Device:
        """The array module of its tiler.

        Raises
        ------
        Skip
            If CuPy is not there or does not work.
        """
        if self.kind == "cpu":
            return devices.HostDevice()
        try:
            return devices.CudaDevice(self.index)
        except devices.DeviceUnavailable as error:
            raise Skip(str(error)) from error

    def synchronise(self) -> None:
        """Wait for all work on it."""
        if self.kind == "cuda":
            torch = need("torch", install="pip install torch")
            torch.cuda.synchronize(self.index)

    def seconds(self, run: Callable[[], object], *, at_least_s: float = 0.0) -> float:
        """Time of one run: the mean of as many as fill ``at_least_s``.

        It waits after one run, then after as many again as were run, and so on: a GPU takes orders for far longer than
        it needs to be told.
        """
        self.synchronise()
        began, runs = time.perf_counter(), 0
        while True:
            more = runs or 1
            for _ in range(more):
                run()
            self.synchronise()
            runs += more
            elapsed_s = time.perf_counter() - began
            if elapsed_s >= at_least_s:
                return elapsed_s / runs


def has_gpu(index: int) -> str:
    """Empty where PyTorch or CuPy can use that GPU, else why not."""
    reasons = []
    try:
        import torch

        if torch.cuda.is_available() and torch.cuda.device_count() > index:
            return ""
        reasons.append(f"PyTorch {torch.__version__} finds {torch.cuda.device_count()} GPUs")
    except ImportError as error:
        reasons.append(f"no PyTorch ({error})")
    try:
        devices.CudaDevice(index)
        return ""
    except devices.DeviceUnavailable as error:
        reasons.append(str(error))
    return "; ".join(reasons)


def describe(device: Device) -> dict[str, Any]:
    """Machine, GPU, driver, limits of the clocks, and versions."""
    facts: dict[str, Any] = {**describe_machine(), "versions": versions(_DISTRIBUTIONS)}
    return {**facts, "gpu": nvidia_smi(device, _GPU_FACTS)} if device.kind == "cuda" else facts


def clocks(device: Device) -> dict[str, str]:
    """What the GPU runs at now; empty for a CPU. Asked right after a measurement, it tells what that ran at."""
    return nvidia_smi(device, _GPU_PACE) if device.kind == "cuda" else {}


def nvidia_smi(device: Device, fields: str) -> dict[str, str]:
    """Facts about a GPU, by nvidia-smi's names of them; ``error`` in their place where it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return {"error": "nvidia-smi is not installed"}
    answer = subprocess.run(
        ["nvidia-smi", f"--id={device.index}", f"--query-gpu={fields}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if answer.returncode != 0:
        return {"error": (answer.stdout + answer.stderr).strip()}
    values = [value.strip() for value in answer.stdout.strip().split(",")]
    return dict(zip(fields.split(","), values, strict=True))


@dataclass(frozen=True)
class Pace:
    """How long speeds are measured.

    Parameters
    ----------
    rounds : int
        How often each is timed.
    at_least_s : float
        Seconds that a timing lasts, at least; with 0 it is one run.
    """

    rounds: int = 5
    at_least_s: float = 0.5


def time_on(device: Device, runs: Mapping[str, Callable[[], object]], pace: Pace) -> Rounds[float]:
    """Seconds a run of several things in turn, each run once before, uncounted."""
    for run in runs.values():
        device.seconds(run)
    measures = {name: partial(device.seconds, run, at_least_s=pace.at_least_s) for name, run in runs.items()}
    return interleave(measures, pace.rounds)


def times_as_fast(seconds: Rounds[float], reference: str) -> dict[str, float]:
    """How many times as fast as ``reference`` each is: the median over the rounds."""
    return {name: ratio["median"] for name, ratio in seconds.ratios(reference).items()}
