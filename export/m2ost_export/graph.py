"""A network as an ONNX graph with a dynamic batch, and how far the two are apart in float32."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from m2ost.network import M2OST
from m2ost_preprocess.contract import EXPRESSION, MAX_ROWS, ViewGeometry

from .errors import ExportError
from .fused import FusedM2OST
from .onnx_files import load_checked
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


def export_onnx(model: M2OST | FusedM2OST, path: Path) -> onnx.ModelProto:
    """Write ``model`` as ONNX: inputs VIEW0 … uint8 (batch, s, s, 3), output EXPRESSION float32 (batch, G).

    Parameters
    ----------
    model : M2OST or FusedM2OST
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
    return load_checked(path, geometry)


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
