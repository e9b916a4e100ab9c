"""Run by the server's interpreter, as a file: what its environment has. Standard library, and what is asked about.

Usage: ask_server.py [--probe] [--bf16]. Writes one JSON object as the last line: the arguments of ``ServerFacts``, but
for the interpreter's name.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

NAMES = (
    "numpy",
    "m2ost-triton",
    "onnxruntime",
    "openvino",
    "openslide",
    "cucim",
    "cupy",
    "tensorrt",
    "nvidia-pytriton",
)
"""Beginnings of the names of distributions that matter."""


def main(probe: bool, bf16: bool) -> None:
    """Write the facts."""
    installed = {str(d.metadata["Name"]).lower().replace("_", "-"): d.version for d in distributions()}
    facts: dict[str, Any] = {
        "version": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "packages": {name: version for name, version in sorted(installed.items()) if name.startswith(NAMES)},
        "probed": probe,
    }
    if probe:
        # A library's own words must not mix with the answer.
        with contextlib.redirect_stdout(sys.stderr):
            facts |= _onnxruntime() | _gpus() | {"libcuda_error": _libcuda_error()}
            facts |= {"tensorrt": _tensorrt(), "nvinfer": _nvinfer(), "tensorrt_rtx": _tensorrt_rtx()}
    if bf16:
        with contextlib.redirect_stdout(sys.stderr):
            facts |= _bf16()
    sys.stdout.write(json.dumps(facts) + "\n")


def _onnxruntime() -> dict[str, Any]:
    try:
        ort = importlib.import_module("onnxruntime")
    except Exception as error:  # whatever keeps it from being imported is the finding
        return {"provider_error": str(error)}
    providers = ort.get_available_providers()
    facts = {"providers": providers, "onnxruntime_cuda": str(getattr(ort, "cuda_version", "") or "")}
    if "CUDAExecutionProvider" in providers:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        folder = Path(str(ort.__file__)).parent / "capi"
        try:
            ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
        except OSError as error:
            facts["provider_error"] = str(error)
    return facts


def _gpus() -> dict[str, Any]:
    try:
        cuda = importlib.import_module("m2ost_preprocess.cuda")
        cupy = cuda.import_cupy()
        runtime = cupy.cuda.runtime
    except Exception as error:  # as above
        return {"gpu_error": f"CuPy: {error}"}
    facts: dict[str, Any] = {"cuda_driver": runtime.driverGetVersion()}
    try:
        properties = [runtime.getDeviceProperties(index) for index in range(runtime.getDeviceCount())]
    except runtime.CUDARuntimeError as error:
        return {**facts, "gpu_error": str(error)}
    facts["gpus"] = [
        {
            "name": found["name"].decode(),
            "compute_capability": f"{found['major']}.{found['minor']}",
            "memory_bytes": found["totalGlobalMem"],
        }
        for found in properties
    ]
    if properties:
        try:
            cuda.try_kernel(cupy)
        except Exception as error:  # as above
            facts["kernel_error"] = f"{type(error).__name__}: {error}"
    return facts


def _bf16() -> dict[str, Any]:
    try:
        mixed = importlib.import_module("m2ost_serving.engine.mixed")
        return {"bf16_instructions": mixed.bf16_instructions(), "bf16_gain": mixed.bf16_gain()}
    except Exception as error:  # as above
        return {"bf16_error": str(error)}


def _libcuda_error() -> str:
    try:
        ctypes.CDLL("libcuda.so")
    except OSError as error:
        return str(error)
    return ""


def _tensorrt() -> str:
    with contextlib.suppress(ImportError):
        return str(importlib.import_module("tensorrt").__version__)
    return ""


def _nvinfer() -> str:
    for name in ("libnvinfer.so.11", "libnvinfer.so.10"):
        with contextlib.suppress(OSError):
            number = int(ctypes.CDLL(name).getInferLibVersion())
            return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return ""


def _tensorrt_rtx() -> str:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        with contextlib.suppress(ImportError):
            return str(importlib.import_module(name).__version__)
    return ""


if __name__ == "__main__":
    main("--probe" in sys.argv[1:], "--bf16" in sys.argv[1:])
