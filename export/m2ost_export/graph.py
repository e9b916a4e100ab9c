"""A network as an ONNX graph with a dynamic batch, and the gate that compares the two."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
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


def export_onnx(model: M2OST, path: Path) -> None:
    """Write ``model`` as ONNX: inputs VIEW0 … uint8 (batch, s, s, 3), output EXPRESSION float32 (batch, G).

    Raises
    ------
    ExportError
        If the file is not a valid graph with exactly these inputs and output.
    """
    geometry = model.config.views
    example = tuple(torch.zeros(2, *geometry.shape, dtype=torch.uint8) for _ in geometry.names)
    batch = torch.export.Dim("batch", min=1, max=MAX_ROWS)
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                example,
                input_names=list(geometry.names),
                output_names=[EXPRESSION],
                dynamic_shapes={"views": tuple({0: batch} for _ in geometry.names)},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    if program is None:
        raise ExportError("torch.onnx.export returned no program")
    program.save(str(path), external_data=False)
    _check_interface(path, geometry)


def _check_interface(path: Path, geometry: ViewGeometry) -> None:
    graph = onnx.load(path)
    onnx.checker.check_model(graph)

    def signature(value: Any) -> tuple[str, int, list[Any]]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]

    found = [signature(v) for v in [*graph.graph.input, *graph.graph.output]]
    expected = [(n, onnx.TensorProto.UINT8, ["batch", *geometry.shape]) for n in geometry.names]
    if found[:-1] != expected or found[-1][:2] != (EXPRESSION, onnx.TensorProto.FLOAT) or found[-1][2][0] != "batch":
        raise ExportError(f"{path.name}: the graph's door is {found}, expected {expected} and {EXPRESSION}")


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
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    geometry = model.config.views
    found = {}
    for batch in batches:
        arrays = views(geometry, batch, batch)
        with torch.inference_mode():
            expected = model(*(torch.from_numpy(a) for a in arrays)).numpy()
        (actual,) = session.run([EXPRESSION], dict(zip(geometry.names, arrays, strict=True)))
        found[batch] = float(np.abs(actual - expected).max())
    return Parity(tolerance, found)
