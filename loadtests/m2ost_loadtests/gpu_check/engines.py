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
    """TensorRT or TensorRT-RTX: an engine built here from the ONNX file, strongly typed: its precision is the file's.

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
    torch = need("torch", install="pip install torch")
    logger = trt.Logger(trt.Logger.ERROR)
    # The flag went with the choice: from TensorRT 11 on every network is strongly typed.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    builder = trt.Builder(logger)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx.path.read_bytes()):
        raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    for name in onnx.geometry.names:
        profile.set_shape(name, *((rows, *onnx.geometry.shape) for rows in (1, min(32, max_rows), max_rows)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"{runtime} {trt.__version__} builds no engine of {onnx.path}")
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()

    def score(views: Sequence[Any]) -> Any:
        expression = torch.empty((len(views[0]), onnx.genes), dtype=torch.float32, device=device.torch)
        for name, view in zip(onnx.geometry.names, views, strict=True):
            context.set_input_shape(name, tuple(view.shape))
            context.set_tensor_address(name, view.data_ptr())
        context.set_tensor_address(EXPRESSION, expression.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(device.index).cuda_stream):
            raise RuntimeError(f"{runtime} could not run the engine")
        return expression

    return score


def _tensorrt(runtime: str) -> Any:
    reasons = []
    for module in TENSORRT_MODULES[runtime]:
        try:
            return need(module, install=f"install {runtime}")
        except Skip as skip:
            reasons.append(str(skip))
    raise Skip("; ".join(reasons))
