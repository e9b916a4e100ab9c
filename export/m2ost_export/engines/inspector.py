"""What an engine really became, read from the engine itself: needs the GPU that it is for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import EngineBuildError
from .toolkit import Toolkit

_TYPES = {
    "FP16": r"fp16|half|float16",
    "BF16": r"bf16|bfloat16?",
    "FP32": r"fp32|float32|float",
    "INT8": r"u?int8",
    "INT32": r"int32",
    "INT64": r"int64",
    "BOOL": r"bool",
}
_WANTED = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16"}
_CLOSED = re.compile(r"^\{?ForeignNode\[")
_MULTIPLIES = re.compile(r"matmul|matrix_?multiply|gemm|attention|mha", re.IGNORECASE)
"""How an engine's layer that multiplies matrices calls itself: by kind, by kernel, or by its ONNX nodes."""


def inspect_engine(toolkit: Toolkit, data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read an engine's layers with the library's own inspector.

    Parameters
    ----------
    toolkit : Toolkit
        That built it, on the machine with its GPU.
    data : bytes
        The serialized engine, built with detailed profiling.
    shapes : mapping of str to tuple of int
        Input → shape. Of an engine with a dynamic batch the inspector tells types only for shapes that are set.

    Returns
    -------
    dict
        The inspector's JSON.

    Raises
    ------
    EngineBuildError
        If the engine cannot be loaded here.
    """
    trt = toolkit.trt
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EngineBuildError(f"{toolkit.name} {toolkit.version} built an engine that it cannot load on this GPU")
    context, inspector = engine.create_execution_context(), engine.create_engine_inspector()
    if context is None:
        raise EngineBuildError(
            f"{toolkit.name} {toolkit.version}: no room on this GPU to run the engine; see nvidia-smi"
        )
    for name, shape in shapes.items():
        context.set_input_shape(name, shape)
    inspector.execution_context = context
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    information: dict[str, Any] = json.loads(text)
    return information


def count_engine_layers(information: Mapping[str, Any]) -> dict[str, int]:
    """Layers of an engine by kind and type of their first output, most first: ``gemm FP16`` → how many."""
    counts: Counter[str] = Counter()
    for layer in _layers(information):
        counts[f"{layer.get('LayerType', 'unknown')} {next(_types(layer, 'Outputs'), 'unknown')}"] += 1
    return dict(counts.most_common())


def check_engine_precision(information: Mapping[str, Any], precision: str) -> bool:
    """Refuse an engine most of whose matrix multiplications see nothing of the precision asked for.

    Parameters
    ----------
    information : mapping
        As :func:`inspect_engine` returns it.
    precision : str
        ``fp32``, ``fp16`` or ``bf16``.

    Returns
    -------
    bool
        Whether the engine tells: one compiled into a single closed node shows its inputs and outputs only.

    Raises
    ------
    EngineBuildError
        If it tells and came out in another precision.
    """
    wanted = _WANTED[precision]
    layers = [layer for layer in _layers(information) if not _CLOSED.search(str(layer.get("Name", "")))]
    types = [
        {*_types(layer, "Inputs"), *_types(layer, "Outputs")}
        for layer in layers
        if _MULTIPLIES.search(json.dumps(layer))
    ]
    if not any(types):
        return False
    seen = Counter(name for layer in types for name in layer)
    if sum(wanted in layer for layer in types) * 2 <= len(types):
        told = ", ".join(f"{name} in {n}" for name, n in seen.most_common())
        raise EngineBuildError(
            f"an engine in {precision} was asked for; of its {len(types)} layers that multiply matrices the inspector "
            f"says: {told}"
        )
    return True


def _layers(information: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    # Without detailed profiling a layer is its name only.
    return [layer for layer in information.get("Layers", []) if isinstance(layer, dict)]


def _types(layer: Mapping[str, Any], side: str) -> Iterator[str]:
    """Types of a layer's tensors. TensorRT 10 has them in ``Format/Datatype``, 11 in ``DataType`` beside ``Format``."""
    for tensor in layer.get(side, []):
        told = {key.lower(): str(value) for key, value in tensor.items()}
        text = told.get("datatype") or told.get("format/datatype") or told.get("format", "")
        for name, pattern in _TYPES.items():
            if re.search(rf"\b(?:{pattern})\b", text, re.IGNORECASE):
                yield name
                break
