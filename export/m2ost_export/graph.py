"""A network as an ONNX graph with a dynamic batch, and the gate that compares the two."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from m2ost.network import M2OST
from m2ost_preprocess.contract import EXPRESSION, MAX_ROWS, ViewGeometry

OPSET = 20
PARITY_BATCHES = (1, 2, 7, 32)
FP32_TOLERANCE = 1e-4

Views = list[np.ndarray[Any, np.dtype[np.uint8]]]


class ExportError(Exception):
    """A checkpoint cannot become a release; the message says which gate refused it."""


@dataclass(frozen=True)
class Parity:
    """How far a graph is from its network.

    Parameters
    ----------
    tolerance : float
        Largest absolute difference that passes.
    max_abs_diff : dict of int to float
        Batch size → largest absolute difference found.
    """

    tolerance: float
    max_abs_diff: dict[int, float]

    @property
    def passed(self) -> bool:
        """Whether every batch is within the tolerance; a NaN is not."""
        return all(diff <= self.tolerance for diff in self.max_abs_diff.values())


@dataclass(frozen=True)
class Door:
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


def export_onnx(model: M2OST, path: Path) -> None:
    """Write ``model`` as ONNX: inputs VIEW0 … uint8 (batch, s, s, 3), output EXPRESSION float32 (batch, G).

    Raises
    ------
    ExportError
        If the file is not a valid graph with exactly these inputs and output.
    """
    geometry = model.config.views
    batch = torch.export.Dim("batch", min=1, max=MAX_ROWS)
    write_graph(
        model,
        path,
        example=tuple(torch.zeros(2, *geometry.shape, dtype=torch.uint8) for _ in geometry.names),
        inputs=[Door(n, onnx.TensorProto.UINT8, ("batch", *geometry.shape)) for n in geometry.names],
        outputs=[Door(EXPRESSION, onnx.TensorProto.FLOAT, ("batch", model.config.n_genes))],
        dynamic_shapes={"views": tuple({0: batch} for _ in geometry.names)},
    )


def write_graph(
    module: torch.nn.Module,
    path: Path,
    *,
    example: tuple[torch.Tensor, ...],
    inputs: Sequence[Door],
    outputs: Sequence[Door],
    dynamic_shapes: dict[str, Any],
) -> None:
    """Write a network as one ONNX file.

    Parameters
    ----------
    module : Module
        In eval mode.
    path : Path
    example : tuple of Tensor
        Inputs to trace it with.
    inputs, outputs : sequence of Door
        What the graph must show to the outside.
    dynamic_shapes : dict
        As ``torch.export`` takes them.

    Raises
    ------
    ExportError
        If the file is not a valid graph with exactly these inputs and outputs.
    """
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                example,
                input_names=[door.name for door in inputs],
                output_names=[door.name for door in outputs],
                dynamic_shapes=dynamic_shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    if program is None:
        raise ExportError("torch.onnx.export returned no program")
    program.save(str(path), external_data=False)
    _check_interface(path, inputs, outputs)


def _check_interface(path: Path, inputs: Sequence[Door], outputs: Sequence[Door]) -> None:
    graph = onnx.load(path)
    onnx.checker.check_model(graph)

    def door(value: Any) -> Door:
        tensor = value.type.tensor_type
        return Door(value.name, tensor.elem_type, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim))

    def loosely(doors: Sequence[Door]) -> list[tuple[str, int, str | int]]:
        return [(d.name, d.kind, d.shape[0]) for d in doors]

    taken, given = [door(v) for v in graph.graph.input], [door(v) for v in graph.graph.output]
    if taken != list(inputs) or loosely(given) != loosely(outputs):
        raise ExportError(f"{path.name}: the graph's door is {taken} → {given}, expected {inputs} → {outputs}")


def probe_views(geometry: ViewGeometry, batch: int, seed: int) -> Views:
    """Views over the full range of inputs: smooth fields, noise, and, from the third row on, black and white."""
    random = np.random.default_rng(seed)
    views = []
    for _ in geometry.names:
        coarse = random.integers(0, 256, (batch, 7, 7, 3)).astype(np.float32)
        reps = -(-geometry.size_px // 7)
        smooth = coarse.repeat(reps, axis=1).repeat(reps, axis=2)[:, : geometry.size_px, : geometry.size_px]
        noise = random.integers(-20, 21, smooth.shape)
        views.append((smooth + noise).clip(0, 255).astype(np.uint8))
    for view in views:
        view[2:3] = 0
        view[3:4] = 255
    return views


def measure_parity(
    model: M2OST,
    path: Path,
    *,
    batches: Sequence[int] = PARITY_BATCHES,
    tolerance: float = FP32_TOLERANCE,
    views: Callable[[ViewGeometry, int, int], Views] = probe_views,
) -> Parity:
    """Compare ONNX Runtime on the CPU with PyTorch on the same views.

    Parameters
    ----------
    model : M2OST
        The reference, float32.
    path : Path
        The graph.
    batches : sequence of int
        Batch sizes to compare at.
    tolerance : float
        Largest absolute difference that passes.
    views : callable
        Makes the views of a batch: (geometry, batch, seed) → list of uint8 arrays.
    """
    geometry = model.config.views
    inputs = {batch: dict(zip(geometry.names, views(geometry, batch, batch), strict=True)) for batch in batches}
    return compare(model, path, inputs, tolerance=tolerance)


def compare(
    module: torch.nn.Module,
    path: Path,
    inputs: Mapping[int, Mapping[str, np.ndarray[Any, Any]]],
    *,
    tolerance: float = FP32_TOLERANCE,
) -> Parity:
    """Compare all outputs of a graph on ONNX Runtime's CPU with those of its network.

    Parameters
    ----------
    module : Module
        The reference; returns one tensor or a tuple of them.
    path : Path
        The graph.
    inputs : mapping
        Batch size → arrays by name, in the order of the network's arguments.
    tolerance : float
        Largest absolute difference that passes.
    """
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = {}
    for batch, arrays in inputs.items():
        with torch.inference_mode():
            expected = module(*(torch.from_numpy(a) for a in arrays.values()))
        actual = session.run(None, dict(arrays))
        pairs = zip(actual, expected if isinstance(expected, tuple) else (expected,), strict=True)
        found[batch] = max(float(np.abs(a - e.numpy()).max()) for a, e in pairs)
    return Parity(tolerance, found)
