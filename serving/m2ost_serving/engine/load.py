"""The engine that a served model's config asks for, out of its release."""

from __future__ import annotations

from m2ost_contract import (
    CHOICES,
    ENGINE_PARAMETER,
    ONNXRUNTIME_CPU,
    ONNXRUNTIME_CUDA,
    OPENVINO_CPU,
    OPENVINO_CPU_BF16,
    EngineError,
    Release,
    graphs_of,
    why_no_bf16,
)

from ..devices import CudaDevice, HostDevice
from .base import CpuThreads, Engine
from .mixed import MixedOpenVinoEngine
from .onnx import OnnxEngine
from .openvino import OpenVinoEngine
from .tensorrt import TensorRTEngine


def load_engine(
    release: Release,
    choice: str | None,
    device_index: int = 0,
    *,
    threads: CpuThreads | None = None,
) -> Engine:
    """Load an engine, after its file's sha256 has been compared with the release's word.

    Parameters
    ----------
    release : Release
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
        If there is no such engine, or it cannot run here.
    DeviceUnavailable
        If the GPU cannot be used.
    ReleaseError
        If its file is not the release's.
    """
    views = release.engine.views
    if choice == OPENVINO_CPU_BF16:
        return _load_mixed(release, threads)
    if choice in (ONNXRUNTIME_CPU, OPENVINO_CPU, ONNXRUNTIME_CUDA):
        release.check(graphs_of(choice))
        if choice == OPENVINO_CPU:
            return OpenVinoEngine(release.onnx, views, threads)
        if choice == ONNXRUNTIME_CUDA:
            return OnnxEngine(release.onnx, views, CudaDevice(device_index))
        return OnnxEngine(release.onnx, views, HostDevice(), threads)
    if choice not in CHOICES:
        raise EngineError(f"the config's parameter {ENGINE_PARAMETER!r} is {choice!r}, not one of {', '.join(CHOICES)}")
    device = CudaDevice(device_index)
    plan = release.plan(choice, device.compute_capability)
    release.check([plan.file])
    return TensorRTEngine(release.folder / plan.file, views, choice, device)


def _load_mixed(release: Release, threads: CpuThreads | None) -> MixedOpenVinoEngine:
    """Body and tail, where they passed their gate with the instructions that they are computed by here."""
    problem = why_no_bf16(release.manifest)
    if problem or release.split is None:
        raise EngineError(f"{release.folder}: {problem}")
    release.check(graphs_of(OPENVINO_CPU_BF16))
    engine = MixedOpenVinoEngine(*release.split, release.engine.views, threads)
    problem = why_no_bf16(release.manifest, engine.instructions)
    if problem:
        raise EngineError(f"{release.folder}: {problem}")
    return engine
