"""An ONNX file on ONNX Runtime, TensorRT and TensorRT-RTX, fed from PyTorch's memory on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_preprocess.contract import EXPRESSION, ViewGeometry

from .device import Device
from .parts import Skip, need

Scorer = Callable[[Sequence[Any]], Any]
"""Views on the device (uint8 tensors of PyTorch, one a view, C-contiguous) → expression, a tensor on the device."""

TENSORRT_MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""Python modules of a runtime; the first that is installed is taken."""

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


@dataclass(frozen=True)
class OnnxFile:
    """A release's graph.

    Parameters
    ----------
    path : Path
        The file.
    geometry : ViewGeometry
        The views it takes.
    genes : int
        The columns of EXPRESSION.
    """

    path: Path
    geometry: ViewGeometry
    genes: int


def onnxruntime_scorer(onnx: OnnxFile, device: Device) -> Scorer:
    """ONNX Runtime on CUDA, or on the CPU where that is checked.

    Raises
    ------
    Skip
        If ONNX Runtime is missing or was built without CUDA.
    RuntimeError
        If it was built with CUDA and puts the network elsewhere.
    """
    torch = need("torch", install="pip install torch")
    ort = need("onnxruntime", install="pip install onnxruntime-gpu")
    provider = _PROVIDERS[device.kind]
    if provider not in ort.get_available_providers():
        raise Skip(f"onnxruntime {ort.__version__} was built without CUDA; pip install onnxruntime-gpu")
    options = {"device_id": str(device.index), "use_tf32": "0"} if device.kind == "cuda" else {}
    session = ort.InferenceSession(onnx.path, providers=[(provider, options)])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"ONNX Runtime took {session.get_providers()[0]} in place of {provider}")

    def score(views: Sequence[Any]) -> Any:
        expression = torch.empty((len(views[0]), onnx.genes), dtype=torch.float32, device=device.torch)
        binding = session.io_binding()
        for name, view in zip(onnx.geometry.names, views, strict=True):
            binding.bind_input(name, device.kind, device.index, np.uint8, tuple(view.shape), view.data_ptr())
        binding.bind_output(
            EXPRESSION, device.kind, device.index, np.float32, tuple(expression.shape), expression.data_ptr()
        )
        session.run_with_iobinding(binding)
        return expression

    return score


def tensorrt_scorer(onnx: OnnxFile, runtime: str, device: Device, *, max_rows: int) -> Scorer:
    """TensorRT or TensorRT-RTX, with an engine that is built here.

    Raises
    ------
    Skip
        If the runtime is missing, or no GPU is checked.
    RuntimeError
        If the file cannot be parsed or built.
    """
    trt = _tensorrt(runtime)
    if device.kind != "cuda":
        raise Skip(f"{runtime} runs on GPUs only")
    return _TensorRT(trt, build_plan(trt, onnx, max_rows), onnx, device)


def build_plan(trt: Any, onnx: OnnxFile, max_rows: int, compute_capability: Any = None) -> Any:
    """A serialised engine of an ONNX file, strongly typed: its precision is the file's.

    Parameters
    ----------
    trt : module
        TensorRT or TensorRT-RTX.
    onnx : OnnxFile
    max_rows : int
        Largest batch.
    compute_capability : optional
        Of TensorRT-RTX: builds for that one, on a machine without a GPU too.

    Raises
    ------
    RuntimeError
        If the file cannot be parsed or built.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # The flag went with the choice: from TensorRT 11 on every network is strongly typed.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx.path.read_bytes()):
        raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    for name in onnx.geometry.names:
        profile.set_shape(name, *((rows, *onnx.geometry.shape) for rows in (1, min(32, max_rows), max_rows)))
    config.add_optimization_profile(profile)
    if compute_capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(compute_capability, 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"{trt.__name__} {trt.__version__} builds no engine of {onnx.path}")
    return plan


class _TensorRT:
    """An execution context; runtime and engine live as long as it."""

    def __init__(self, trt: Any, plan: Any, onnx: OnnxFile, device: Device) -> None:
        self._torch = need("torch", install="pip install torch")
        self._onnx, self._device = onnx, device
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self._context = self._engine.create_execution_context()

    def __call__(self, views: Sequence[Any]) -> Any:
        shape = (len(views[0]), self._onnx.genes)
        expression = self._torch.empty(shape, dtype=self._torch.float32, device=self._device.torch)
        for name, view in zip(self._onnx.geometry.names, views, strict=True):
            self._context.set_input_shape(name, tuple(view.shape))
            self._context.set_tensor_address(name, view.data_ptr())
        self._context.set_tensor_address(EXPRESSION, expression.data_ptr())
        if not self._context.execute_async_v3(self._torch.cuda.current_stream(self._device.index).cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        return expression


def _tensorrt(runtime: str) -> Any:
    reasons = []
    for module in TENSORRT_MODULES[runtime]:
        try:
            return need(module, install=f"install {runtime}")
        except Skip as skip:
            reasons.append(str(skip))
    raise Skip("; ".join(reasons))
