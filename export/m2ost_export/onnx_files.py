"""What an exported ``.onnx`` file must be, and what is recorded of it. No torch: this runs where engines are built."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from m2ost_preprocess.contract import EXPRESSION, ViewGeometry
from onnx import TensorProto, numpy_helper

from .errors import ExportError

ELEMENT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
"""ONNX element type of the weights of a graph, by the name of its precision."""

_REDUCED = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def load_checked(path: Path, geometry: ViewGeometry) -> onnx.ModelProto:
    """Read a graph and check its form, its door and its weights.

    Parameters
    ----------
    path : Path
        The file.
    geometry : ViewGeometry
        The views that it must take: VIEW0 … uint8 (batch, s, s, 3) in, EXPRESSION float32 (batch, G) out.

    Raises
    ------
    ExportError
        If the file is no valid graph, has another door, or a weight that is NaN or infinite; names the weight.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, the checker and the file system each raise kinds of their own
        raise ExportError(f"{path}: not a valid ONNX file: {error}; export the checkpoint anew") from error
    _check_door(path, model, geometry)
    for weight in model.graph.initializer:
        if weight.data_type in ELEMENT_TYPES.values() and not np.isfinite(_array(weight)).all():
            raise ExportError(f"refused: weight {weight.name} of {path.name} is not finite; train or convert it anew")
    return model


def _check_door(path: Path, model: onnx.ModelProto, geometry: ViewGeometry) -> None:
    def signature(value: Any) -> tuple[str, int, list[Any]]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]

    found = [signature(v) for v in [*model.graph.input, *model.graph.output]]
    expected = [(n, TensorProto.UINT8, ["batch", *geometry.shape]) for n in geometry.names]
    if found[:-1] != expected or found[-1][:2] != (EXPRESSION, TensorProto.FLOAT) or found[-1][2][0] != "batch":
        raise ExportError(f"{path.name}: the graph's door is {found}, expected {expected} and {EXPRESSION}")


def _array(weight: TensorProto) -> Any:
    return np.asarray(numpy_helper.to_array(weight), np.float32)


def describe(model: onnx.ModelProto) -> dict[str, Any]:
    """Facts for the manifest: opset, number of nodes, nodes by operator, and bytes of weights by element type."""
    weights: Counter[str] = Counter()
    for weight in model.graph.initializer:
        weights[TensorProto.DataType.Name(weight.data_type)] += len(weight.raw_data)
    return {
        "opset": next(o.version for o in model.opset_import if not o.domain),
        "nodes": len(model.graph.node),
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "weight_bytes": dict(weights.most_common()),
    }


def as_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with float32 in place of float16 and bfloat16: the twin that a smaller engine is measured by.

    Parameters
    ----------
    model : ModelProto
        A graph as ``export_onnx`` writes it: without subgraphs, its weights initializers.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    # Types of what flows between the nodes: they follow from the weights, and would contradict them now.
    del twin.graph.value_info[:]
    for weight in twin.graph.initializer:
        if weight.data_type in _REDUCED:
            weight.CopyFrom(numpy_helper.from_array(_array(weight), weight.name))
    for node in twin.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _REDUCED:
                attribute.i = TensorProto.FLOAT
    return twin
