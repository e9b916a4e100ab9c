"""The network for dense maps: what neighbouring windows have in common is computed once for a batch.

Patches are embedded before their positions are added, so that an embedding is a function of its patch alone: each
distinct patch of a batch is embedded once, and every token gathered from there. From the first softmax on a token
depends on all others of its window, and nothing more is shared. In between lies the projection to the first block's
queries, keys and values, W(e + p) = We + Wp, 3 % of the network's operations: to gather We, three times as wide as e,
takes a CPU as long as to compute it, so it is not shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from m2ost.config import M2OSTConfig
from m2ost.network import M2OST
from m2ost_contract import EXPRESSION, MAX_ROWS
from m2ost_serving.engine.patches import PatchGeometry, share
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

from .fused import FusedM2OST
from .graph import FP32_TOLERANCE, PARITY_BATCHES, Parity, check_weights, write_graph
from .onnx_files import GIVEN_EXPRESSION, GraphTensor
from .probes import probe_views


def patch_geometry(config: M2OSTConfig) -> PatchGeometry:
    """How a network cuts its views."""
    return PatchGeometry(config.image_px, config.patch_px, config.n_levels)


class DenseM2OST(nn.Module):
    """A network that takes distinct patches and where they go.

    Parameters
    ----------
    fused : FusedM2OST
        The network in the form made for engines; its weights are used as they are.
    """

    def __init__(self, fused: FusedM2OST) -> None:
        super().__init__()
        self.fused = fused
        self.geometry = patch_geometry(fused.config)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Predict expression.

        Parameters
        ----------
        *inputs : Tensor
            As :class:`~m2ost_serving.engine.patches.SharedPatches` holds them: of every patching its distinct
            patches, uint8, shape (t, 3·p²); then of every level its index, int32, shape (B, tokens).

        Returns
        -------
        Tensor, float32, shape (B, n_genes)
        """
        patchings = self.geometry.patchings
        patches, indices = inputs[: len(patchings)], inputs[len(patchings) :]
        embedded = {patching: self._embed(x, patching[1]) for patching, x in zip(patchings, patches, strict=True)}
        sequences = []
        for level, (index, positions) in enumerate(zip(indices, self.fused.positions, strict=True)):
            tokens = torch.cat([embedded[level, j] for j in range(level, -1, -1)])
            row_of_zeros = (0, 0, 1, 0)
            sequences.append(embedding(index, pad(tokens, row_of_zeros)) + positions)
        return self.fused.predict(sequences)

    def _embed(self, patches: Tensor, j: int) -> Tensor:
        fused = self.fused
        tokens: Tensor = fused.embeddings[j](fused.patch_norms[j](patches.to(fused.dtype)))
        return tokens


def taken_patches(geometry: PatchGeometry) -> list[GraphTensor]:
    """What the graph takes."""
    patches = [
        GraphTensor(name, TensorProto.UINT8, (f"distinct{level}{j}", geometry.patch_bytes(j)))
        for name, (level, j) in zip(geometry.patch_names, geometry.patchings, strict=True)
    ]
    indices = [
        GraphTensor(name, TensorProto.INT32, ("batch", geometry.tokens(level)))
        for level, name in enumerate(geometry.index_names)
    ]
    return [*patches, *indices]


def export_dense(network: DenseM2OST, path: Path) -> onnx.ModelProto:
    """Write the network as ONNX; see :func:`taken_patches` for its inputs.

    Raises
    ------
    ExportError
        If a weight is not finite, or the file is not a valid graph with exactly these inputs and output.
    """
    check_weights(network)
    geometry, inputs = network.geometry, taken_patches(network.geometry)
    # Sizes differ from each other, lest two axes be taken for the same.
    patches = [
        torch.zeros(3 + number, geometry.patch_bytes(j), dtype=torch.uint8)
        for number, (_, j) in enumerate(geometry.patchings)
    ]
    indices = [torch.zeros(2, geometry.tokens(level), dtype=torch.int32) for level in range(geometry.n_levels)]
    most = MAX_ROWS * geometry.tokens_per_patching
    batch = torch.export.Dim("batch", min=1, max=MAX_ROWS)
    axes = [
        batch if taken.name in geometry.index_names else torch.export.Dim(str(taken.shape[0]), min=1, max=most)
        for taken in inputs
    ]
    return write_graph(
        network,
        path,
        example=(*patches, *indices),
        inputs=inputs,
        outputs=[GIVEN_EXPRESSION],
        dynamic_shapes={"inputs": tuple({0: axis} for axis in axes)},
    )


def measure_dense_parity(model: M2OST, path: Path, *, batches: Sequence[int] = PARITY_BATCHES) -> Parity:
    """Compare the graph on ONNX Runtime's CPU with PyTorch on the same views.

    Half of a batch's views are those of another spot, so that there are patches to share.

    Parameters
    ----------
    model : M2OST
        The reference, float32.
    path : Path
        The graph.
    batches : sequence of int
        Batch sizes to compare at.
    """
    geometry = patch_geometry(model.config)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = {}
    for batch in batches:
        half = np.arange(batch) // 2
        views = [view[half] for view in probe_views(model.config.views, batch, batch)]
        with torch.inference_mode():
            expected = model(*map(torch.from_numpy, views)).numpy()
        actual = session.run([EXPRESSION], share(views, geometry).to_feed(geometry))[0]
        found[batch] = float(np.abs(actual - expected).max())
    return Parity(FP32_TOLERANCE, found)
