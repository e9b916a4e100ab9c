"""A slide-level network as two graphs: a stage for patches, batched as a spot-level network is, and one for slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from m2ost.module import Network
from m2ost.systems.histogene import SlideNetwork
from m2ost_contract import EXPRESSION, FEATURES, MAX_ROWS, POSITION, SlideLevel
from onnx import TensorProto
from torch import Tensor, nn

from .graph import BATCH, FP32_TOLERANCE, PARITY_BATCHES, Parity, check_weights, compare, example_views, write_graph
from .onnx_files import GraphTensor, taken_views
from .probes import probe_views

SPOTS = "spots"
"""Name of the first dimension of the stage for slides."""

PARITY_SPOTS = (1, 2, 7, 32)
"""Spots of the slides on which graph and network are compared; of those, what the network has places for."""


class PatchStage(Network):
    """The stage for patches: VIEW0 → FEATURES."""

    def __init__(self, network: SlideNetwork) -> None:
        super().__init__()
        self.config, self.network = network.config, network

    def forward(self, view: Tensor) -> Tensor:
        """Features, float32 (n, dim), of views uint8 (n, image_px, image_px, 3)."""
        return self.network.patches(view)


class SlideStage(nn.Module):
    """The stage for slides: FEATURES and POSITION of all spots of a slide → EXPRESSION."""

    def __init__(self, network: SlideNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, positions: Tensor) -> Tensor:
        """Expression, float32 (n, n_genes), of features float32 (n, dim) at positions int32 (n, 2)."""
        return self.network.slide(features, positions)


def slide_level(network: SlideNetwork) -> SlideLevel:
    """What its release asks of the spots of a slide."""
    config = network.config
    return SlideLevel(features=network.dim, table=config.table, max_spots=config.max_spots)


def export_patch_stage(network: SlideNetwork, path: Path) -> onnx.ModelProto:
    """Write the stage for patches as ONNX: VIEW0 uint8 (batch, s, s, 3) → FEATURES float32 (batch, dim).

    Raises
    ------
    ExportError
        If a weight is not finite, or the file is not a valid graph with exactly this input and output.
    """
    check_weights(network)
    geometry = network.config.views
    return write_graph(
        PatchStage(network).eval(),
        path,
        example=example_views(geometry),
        inputs=taken_views(geometry),
        outputs=[GraphTensor(FEATURES, TensorProto.FLOAT, ("batch",))],
        dynamic_shapes={"view": {0: BATCH}},
    )


def export_slide_stage(network: SlideNetwork, path: Path) -> onnx.ModelProto:
    """Write the stage for slides as ONNX: FEATURES float32 (spots, dim), POSITION int32 (spots, 2) → EXPRESSION.

    Raises
    ------
    ExportError
        If the file is not a valid graph with exactly these inputs and this output.
    """
    spots = torch.export.Dim(SPOTS, min=1, max=network.config.max_spots)
    return write_graph(
        SlideStage(network).eval(),
        path,
        example=(torch.zeros(3, network.dim), torch.tensor([[0, 0], [0, 1], [1, 0]], dtype=torch.int32)),
        inputs=[
            GraphTensor(FEATURES, TensorProto.FLOAT, (SPOTS, network.dim)),
            GraphTensor(POSITION, TensorProto.INT32, (SPOTS, 2)),
        ],
        outputs=[GraphTensor(EXPRESSION, TensorProto.FLOAT, (SPOTS,))],
        dynamic_shapes={"features": {0: spots}, "positions": {0: spots}},
    )


def measure_patch_parity(network: SlideNetwork, path: Path, *, batches: Sequence[int] = PARITY_BATCHES) -> Parity:
    """Compare the stage for patches on ONNX Runtime with PyTorch.

    These networks take pixels of 0 … 255, and their features are not bounded: the tolerance of 1e-4 is a part of the
    largest feature where that is above 1.

    Parameters
    ----------
    network : SlideNetwork
        In eval mode.
    path : Path
        The graph.
    batches : sequence of int
        Batch sizes to compare at.
    """
    inputs = {rows: {"VIEW0": probe_views(network.config.views, rows, rows)[0]} for rows in batches}
    with torch.inference_mode():
        features = network.patches(torch.from_numpy(inputs[max(batches)]["VIEW0"]))
    tolerance = FP32_TOLERANCE * max(1.0, float(features.abs().max()))
    return compare(PatchStage(network), path, inputs, tolerance=tolerance)


def measure_parity_of_stages(
    network: SlideNetwork, patches: Path, sequence: Path, *, spots: Sequence[int] = PARITY_SPOTS
) -> Parity:
    """Compare both stages in a row on ONNX Runtime with PyTorch: from made views at places by chance to expression.

    Parameters
    ----------
    network : SlideNetwork
        In eval mode.
    patches, sequence : Path
        The graphs of the two stages.
    spots : sequence of int
        Sizes of the slides to compare at.
    """
    first, second = (ort.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (patches, sequence))
    table, geometry, found = network.config.table, network.config.views, {}
    for count in sorted({min(n, network.config.max_spots, table**2) for n in spots}):
        places = np.unravel_index(np.random.default_rng(count).choice(table**2, count, replace=False), (table, table))
        positions, views = np.stack(places, axis=1).astype(np.int32), probe_views(geometry, count, count)[0]
        with torch.inference_mode():
            expected = network.slide(network.patches(torch.from_numpy(views)), torch.from_numpy(positions)).numpy()
        parts = (slice(i, i + MAX_ROWS) for i in range(0, count, MAX_ROWS))
        features = np.concatenate([first.run([FEATURES], {"VIEW0": views[part]})[0] for part in parts])
        actual = second.run([EXPRESSION], {FEATURES: features, POSITION: positions})[0]
        found[count] = float(np.abs(actual - expected).max())
    return Parity(FP32_TOLERANCE, found)
