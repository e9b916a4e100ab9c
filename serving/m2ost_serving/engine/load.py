"""The engine that a served model's config asks for, out of its release."""

from __future__ import annotations

from pathlib import Path

from m2ost_contract import (
    CHOICES,
    DENSE_FILE,
    ENGINE_PARAMETER,
    ONNX_FILE,
    ONNXRUNTIME_CPU,
    ONNXRUNTIME_CPU_DENSE,
    ONNXRUNTIME_CUDA,
    OPENVINO_CPU,
    EngineError,
    EngineInfo,
    Manifest,
    plan_for,
    sha256_file,
)

from ..devices import CudaDevice, HostDevice
from .base import CpuThreads, Engine
from .dense import DenseOnnxEngine
from .onnx import OnnxEngine
from .openvino import OpenVinoEngine
from .tensorrt import TensorRTEngine


def load_engine(
    release: Path,
    info: EngineInfo,
    choice: str | None,
    device_index: int = 0,
    *,
    threads: CpuThreads | None = None,
) -> Engine:
    """Load an engine, after its file's sha256 has been compared with the release's word.

    Parameters
    ----------
    release : Path
        The release folder.
    info : EngineInfo
        Identity and views, out of the model's config.
    choice : str or None
        The config's parameter ``engine``, one of ``CHOICES``. It is taken at its word: where that engine cannot run,
        none does.
    device_index : int
        The GPU, where it runs on one.
    threads : CpuThreads, optional
        Those of an engine on the CPU.

    Raises
    ------
    EngineError
        If there is no such engine, its file is not the release's, or it cannot run here.
    """
    if choice == ONNXRUNTIME_CPU:
        return OnnxEngine(_checked(release, ONNX_FILE, info.onnx_sha256), info.views, HostDevice(), threads)
    if choice == ONNXRUNTIME_CPU_DENSE:
        return _dense_engine(release, info, threads)
    if choice == OPENVINO_CPU:
        return OpenVinoEngine(_checked(release, ONNX_FILE, info.onnx_sha256), info.views, threads)
    if choice == ONNXRUNTIME_CUDA:
        return OnnxEngine(_checked(release, ONNX_FILE, info.onnx_sha256), info.views, CudaDevice(device_index))
    if choice not in CHOICES:
        raise EngineError(f"the config's parameter {ENGINE_PARAMETER!r} is {choice!r}, not one of {', '.join(CHOICES)}")
    device = CudaDevice(device_index)
    plan = plan_for(Manifest.read(release).engines, choice, device.compute_capability)
    return TensorRTEngine(_checked(release, plan.file, plan.sha256), info.views, choice, device)


def _dense_engine(release: Path, info: EngineInfo, threads: CpuThreads | None) -> DenseOnnxEngine:
    manifest = Manifest.read(release)
    sha256 = manifest.files.get(DENSE_FILE)
    if sha256 is None:
        raise EngineError(f"{release}: has no {DENSE_FILE}; export the checkpoint anew with: m2ost export --dense")
    patch_px = int(manifest.architecture["patch_px"])
    return DenseOnnxEngine(_checked(release, DENSE_FILE, sha256), info.views, patch_px, threads)


def _checked(release: Path, file: str, sha256: str) -> Path:
    path = release / file
    found = sha256_file(path)
    if found != sha256:
        raise EngineError(f"{path}: sha256 is {found}, the release says {sha256}; export it anew")
    return path
