"""The release's ONNX graph on ONNX Runtime, on the CPU or on a GPU, its arrays bound where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import MAX_ROWS, EngineError, ViewGeometry

from ..devices import CudaDevice, Device, HostDevice
from .base import KEEP_MEMORY_ROWS, CpuThreads, Expression, check_batch

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxEngine:
    """An ONNX Runtime session with exactly the provider that was asked for.

    Parameters
    ----------
    onnx : Path
        The graph.
    geometry : ViewGeometry
        The views it takes.
    device : HostDevice or CudaDevice
        Where it runs.
    threads : CpuThreads, optional
        Those of a session on the CPU.

    Raises
    ------
    EngineError
        If ONNX Runtime would run it elsewhere: it takes the CPU, with a warning at most, where CUDA cannot be had.
    """

    def __init__(
        self,
        onnx: Path,
        geometry: ViewGeometry,
        device: HostDevice | CudaDevice,
        threads: CpuThreads | None = None,
    ) -> None:
        import onnxruntime as ort

        self.device: Device = device
        self.runs = 1
        self._geometry = geometry
        threads, counted = threads or CpuThreads(), ""
        if isinstance(device, HostDevice):
            self._session, self.runs = cpu_session(onnx, threads), threads.runs
            counted = f", {threads.in_words}"
        else:
            self._session = cuda_session(onnx, device.index, stream_pointer=device.stream_pointer)
        given = self._session.get_outputs()[0]
        self._gives, self._values = given.name, given.shape[1]
        # A GPU's memory is the engine's own, and large runs are usual there.
        self._large_run = give_memory_back() if device.kind == "cpu" else None
        self.description = f"ONNX Runtime {ort.__version__}, {_PROVIDERS[device.kind]} {device.index}{counted}"

    def run(self, batch: Mapping[str, Any]) -> Expression:
        """See :class:`~m2ost_serving.engine.base.Engine`."""
        rows, device = check_batch(batch, self._geometry, MAX_ROWS), self.device
        expression = device.empty((rows, self._values))
        binding = self._session.io_binding()
        for name, array in batch.items():
            binding.bind_input(name, device.kind, device.index, np.uint8, array.shape, device.pointer(array))
        binding.bind_output(
            self._gives, device.kind, device.index, np.float32, expression.shape, device.pointer(expression)
        )
        self._session.run_with_iobinding(binding, self._large_run if rows > KEEP_MEMORY_ROWS else None)
        return device.to_host(expression)


def cpu_session(onnx: Path, threads: CpuThreads | None = None) -> Any:
    """An ONNX Runtime session on the CPU.

    Parameters
    ----------
    onnx : Path
        The graph.
    threads : CpuThreads, optional
        By default one for each core of this process's CPU set.

    Returns
    -------
    onnxruntime.InferenceSession
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    threads = threads or CpuThreads()
    options.intra_op_num_threads = threads.a_run
    # Spinning threads would take the cores that the tiler needs between two runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(threads.spinning)))
    # Work is dealt out in shrinking portions, so that a core the tiler uses for a while does not hold up the other.
    options.add_session_config_entry("session.dynamic_block_base", "4")
    # Memory patterns are laid out per batch size; with a batch that varies they double the memory, and from 32 rows on
    # cost a third of the speed.
    options.enable_mem_pattern = False
    return ort.InferenceSession(onnx, options, providers=[_PROVIDERS["cpu"]])


def give_memory_back() -> Any:
    """Options of a run that gives its memory back at the end: ``onnxruntime.RunOptions``."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def cuda_session(
    onnx: Path, index: int = 0, *, stream_pointer: int | None = None, memory_limit_bytes: int | None = None
) -> Any:
    """An ONNX Runtime session on a GPU.

    Parameters
    ----------
    onnx : Path
        The graph.
    index : int
        The GPU.
    stream_pointer : int, optional
        The CUDA stream to work on; by default one of its own.
    memory_limit_bytes : int, optional
        Most memory of the GPU that the session's allocator takes.

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    EngineError
        If ONNX Runtime has no CUDA provider, or the provider cannot be loaded.
    """
    import onnxruntime as ort

    available = ort.get_available_providers()
    if _PROVIDERS["cuda"] not in available:
        raise EngineError(
            f"ONNX Runtime {ort.__version__} has no CUDA provider, only {', '.join(available)}; "
            "`m2ost doctor` says what to install"
        )
    if hasattr(ort, "preload_dlls"):
        # CUDA and cuDNN out of the nvidia-* wheels, where those are how they came here.
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    cuda = {
        "device_id": str(index),
        # A release in fp32 is promised within 1e-4 of its network; TF32's ten bits of mantissa are not.
        "use_tf32": "0",
    }
    if stream_pointer is not None:
        cuda["user_compute_stream"] = str(stream_pointer)
    if memory_limit_bytes is not None:
        cuda |= {"gpu_mem_limit": str(memory_limit_bytes), "arena_extend_strategy": "kSameAsRequested"}
    try:
        session = ort.InferenceSession(onnx, options, providers=[(_PROVIDERS["cuda"], cuda)], enable_fallback=0)
    except (RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise EngineError(f"the CUDA provider of ONNX Runtime does not start: {words}; run: m2ost doctor") from error
    taken = session.get_providers()
    if _PROVIDERS["cuda"] not in taken:
        # A provider whose libraries are missing is left out with a line on stderr, enable_fallback or not.
        raise EngineError(
            f"asked for CUDA, ONNX Runtime took {', '.join(taken)}: a library of CUDA or cuDNN is missing, or "
            "the driver is too old; `m2ost doctor` says which"
        )
    session.disable_fallback()
    return session
