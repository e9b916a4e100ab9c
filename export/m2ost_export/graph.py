"""A network as an ONNX graph with a dynamic batch, and how far the two are apart in float32."""

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
from m2ost.module import Network
from m2ost_contract import MAX_ROWS, ViewGeometry

from .errors import ExportError
from .fused import FusedM2OST
from .onnx_files import GIVEN_EXPRESSION, GraphTensor, load_graph, taken_views
from .probes import Views, probe_views

OPSET = 20
PARITY_BATCHES = (1, 2, 7, 32)
FP32_TOLERANCE = 1e-4


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


def export_onnx(model: Network | FusedM2OST, path: Path) -> onnx.ModelProto:
    """Write ``model`` as ONNX: inputs VIEW0 … uint8 (batch, s, s, 3), output EXPRESSION float32 (batch, G).

    Parameters
    ----------
    model : Network or FusedM2OST
        In eval mode.
    path : Path
        The file to write.

    Returns
    -------
    ModelProto
        What was written.

    Raises
    ------
    ExportError
        If a weight is not finite, or the file is not a valid graph with exactly these inputs and output.
    """
    check_weights(model)
    geometry = model.config.views
    return write_graph(
        model,
        path,
        example=example_views(geometry),
        inputs=taken_views(geometry),
        outputs=[GIVEN_EXPRESSION],
        dynamic_shapes={"views": tuple({0: BATCH} for _ in geometry.names)},
    )


BATCH = torch.export.Dim("batch", min=1, max=MAX_ROWS)
"""The first dimension of every graph's inputs."""


def example_views(geometry: ViewGeometry) -> tuple[torch.Tensor, ...]:
    """Views of two spots, to trace a network with."""
    return tuple(torch.zeros(2, *geometry.shape, dtype=torch.uint8) for _ in geometry.names)


def write_graph(
    module: torch.nn.Module,
    path: Path,
    *,
    example: tuple[torch.Tensor, ...],
    inputs: Sequence[GraphTensor],
    outputs: Sequence[GraphTensor],
    dynamic_shapes: dict[str, Any],
) -> onnx.ModelProto:
    """Write a network as one ONNX file.

    Parameters
    ----------
    module : Module
        In eval mode.
    path : Path
    example : tuple of Tensor
        Inputs to trace it with.
    inputs, outputs : sequence of GraphTensor
        What the graph must show to the outside.
    dynamic_shapes : dict
        As ``torch.export`` takes them.

    Returns
    -------
    ModelProto
        What was written.

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
                input_names=[tensor.name for tensor in inputs],
                output_names=[tensor.name for tensor in outputs],
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
    return load_graph(path, inputs, outputs)


def check_weights(model: torch.nn.Module) -> None:
    """Refuse a network with a weight that is NaN, infinite, or beyond the range of its type.

    Raises
    ------
    ExportError
        Names the weight.
    """
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            kind = str(weight.dtype).removeprefix("torch.")
            raise ExportError(f"refused: weight {name} is not finite in {kind}; no release was written")


def measure_parity(
    model: Network,
    path: Path,
    *,
    batches: Sequence[int] = PARITY_BATCHES,
    tolerance: float = FP32_TOLERANCE,
    views: Callable[[ViewGeometry, int, int], Views] = probe_views,
) -> Parity:
    """Compare ONNX Runtime on the CPU with PyTorch on the same views.

    Parameters
    ----------
    model : Network
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
