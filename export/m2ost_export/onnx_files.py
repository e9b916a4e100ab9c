"""What an exported ``.onnx`` file must be, and what is recorded of it. No torch: this runs where engines are built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from m2ost_contract import EXPRESSION, ViewGeometry
from onnx import TensorProto, helper, numpy_helper

from .errors import ExportError

ELEMENT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
"""ONNX element type of the weights of a graph, by the name of its precision."""

_REDUCED = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class GraphTensor:
    """What a graph takes or gives under one name.

    Parameters
    ----------
    name : str
    kind : int
        ``onnx.TensorProto``'s number of the element type.
    shape : tuple of str and int
        A word for an axis of any length. Of an output only the first axis is checked.
    """

    name: str
    kind: int
    shape: tuple[str | int, ...]


GIVEN_EXPRESSION = GraphTensor(EXPRESSION, TensorProto.FLOAT, ("batch",))
"""What an M2OST gives."""


def taken_views(geometry: ViewGeometry) -> list[GraphTensor]:
    """What an M2OST takes: VIEW0 … uint8 (batch, s, s, 3)."""
    return [GraphTensor(name, TensorProto.UINT8, ("batch", *geometry.shape)) for name in geometry.names]


def load_checked(path: Path, geometry: ViewGeometry) -> onnx.ModelProto:
    """Read the graph of an M2OST; see :func:`load_graph`."""
    return load_graph(path, taken_views(geometry), [GIVEN_EXPRESSION])


def load_graph(path: Path, inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor]) -> onnx.ModelProto:
    """Read a graph and check its form, its inputs, its outputs and its weights.

    Parameters
    ----------
    path : Path
        The file.
    inputs, outputs : sequence of GraphTensor
        What it must show to the outside.

    Raises
    ------
    ExportError
        If the file is no valid graph, has other inputs or outputs, or a weight that is NaN or infinite; names it.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, the checker and the file system each raise kinds of their own
        raise ExportError(f"{path}: not a valid ONNX file: {error}; export the checkpoint anew") from error
    _check_tensors(path, model, inputs, outputs)
    for weight in model.graph.initializer:
        if weight.data_type in ELEMENT_TYPES.values() and not np.isfinite(_array(weight)).all():
            raise ExportError(f"refused: weight {weight.name} of {path.name} is not finite; train or convert it anew")
    return model


def _check_tensors(
    path: Path, model: onnx.ModelProto, inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor]
) -> None:
    def described(value: Any) -> GraphTensor:
        tensor = value.type.tensor_type
        return GraphTensor(value.name, tensor.elem_type, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim))

    def loosely(tensors: Sequence[GraphTensor]) -> list[tuple[str, int, str | int]]:
        return [(d.name, d.kind, d.shape[0]) for d in tensors]

    taken, given = [described(v) for v in model.graph.input], [described(v) for v in model.graph.output]
    if taken != list(inputs) or loosely(given) != loosely(outputs):
        raise ExportError(f"{path.name}: the graph takes {taken} and gives {given}, expected {inputs} → {outputs}")


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


ATTENTION_OPSET = 23
"""The first opset with ``Attention``."""


def with_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with ONNX's ``Attention`` in place of product, softmax, product: what fusing them is worth.

    Parameters
    ----------
    model : ModelProto
        A graph as ``export_onnx`` writes it from :class:`~m2ost_export.fused.FusedM2OST`: q already scaled.

    Raises
    ------
    ExportError
        If there is no attention in it.
    """
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    graph = fused.graph
    maker = {name: node for node in graph.node for name in node.output}
    reader = {name: node for node in graph.node for name in node.input}
    replaced: dict[str, Any] = {}
    gone = set()
    for softmax in (node for node in graph.node if node.op_type == "Softmax"):
        scores, values = maker[softmax.input[0]], reader[softmax.output[0]]
        transpose = maker[scores.input[1]]
        inputs = [scores.input[0], transpose.input[0], values.input[1]]
        replaced[values.name] = helper.make_node("Attention", inputs, values.output, name=values.name, scale=1.0)
        gone |= {softmax.name, scores.name, transpose.name}
    if not replaced:
        raise ExportError("the graph has no attention of the form MatMul, Softmax, MatMul; export the checkpoint anew")
    nodes = [replaced.get(node.name, node) for node in graph.node if node.name not in gone]
    del graph.node[:]
    graph.node.extend(nodes)
    for opset in fused.opset_import:
        if not opset.domain:
            opset.version = ATTENTION_OPSET
    return fused
