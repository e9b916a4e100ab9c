"""A network in two graphs: a body that may be computed in bfloat16, and a tail that must be computed in float32.

The error of a reduced precision comes from the end of the network, where nothing averages it out: the cls tokens' view
of the other levels in the last block, which no residual carries past, its projection, the channel mixing, the last norm
and the head. The cut lies before these. The body gives

- ``TOKENS``: the last block's tokens after its feed-forward, of all levels one after another;
- ``MEANS``: per level the mean, over its tokens, of what they see of the other levels, before the projection.

The tail attends for the cls tokens alone. A query of one token needs no keys and values of all others: q·(W_k x) is
(W_kᵀ q)·x, and the weighted mean of W_v x is W_v of the weighted mean of x. So the tail has a thousandth of the
arithmetic. A network of one level has nothing to attend to: its body gives the cls token and the mean of all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from m2ost.network import M2OST
from m2ost_contract import EXPRESSION
from m2ost_serving.engine.mixed import MEANS, TOKENS
from onnx import TensorProto
from torch import Tensor, nn

from .fused import FusedM2OST
from .graph import BATCH, FP32_TOLERANCE, PARITY_BATCHES, Parity, check_weights, example_views, write_graph
from .onnx_files import GIVEN_EXPRESSION, GraphTensor, taken_views
from .probes import probe_views


class BodyM2OST(nn.Module):
    """A network up to the last block's tokens.

    Parameters
    ----------
    fused : FusedM2OST
        In any precision; its weights are used as they are.
    """

    def __init__(self, fused: FusedM2OST) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, *views: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens and the means.

        Parameters
        ----------
        *views : Tensor, uint8, shape (B, image_px, image_px, 3)
            As :class:`FusedM2OST` takes them.

        Returns
        -------
        Tensor, float32, shape (B, Σ tokens, dim)
            Of one level only the cls token.
        Tensor, float32, shape (B, levels, (levels - 1)·heads·head_dim)
            Of one level shape (B, 1, dim).
        """
        last: Any = self.fused.blocks[-1]
        sequences = self.fused.embed(views)
        for block in self.fused.blocks[:-1]:
            sequences = block(sequences)
        tokens = last.mix_tokens(sequences)
        if not last.mixes_levels:
            return tokens[:, :1].float(), tokens.mean(dim=1, keepdim=True).float()
        means = [seen.mean(dim=1, keepdim=True) for seen in last.attend_levels(tokens)]
        return tokens.float(), torch.cat(means, dim=1).float()


class TailM2OST(nn.Module):
    """The rest of the network, from what :class:`BodyM2OST` gives.

    Parameters
    ----------
    fused : FusedM2OST
        In float32.
    """

    def __init__(self, fused: FusedM2OST) -> None:
        super().__init__()
        self.fused = fused
        self.levels, self.heads = len(fused.config.used_levels), fused.config.heads
        self.queries, self.keys, self.values = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        last: Any = fused.blocks[-1]
        for qkv in last.cross_qkv if last.mixes_levels else ():
            q, k, v = (part.reshape(self.heads, -1, fused.config.dim) for part in qkv.project.weight.chunk(3))
            for kept, weight in ((self.queries, q.mT), (self.keys, k), (self.values, v.mT)):
                kept.append(nn.Parameter(weight.contiguous(), requires_grad=False))

    def forward(self, tokens: Tensor, means: Tensor) -> Tensor:
        """Predict expression: float32, shape (B, n_genes)."""
        last: Any = self.fused.blocks[-1]
        if not last.mixes_levels:
            return self.fused.read_out(last.mix_channels([tokens], [means]))
        mixed, mixed_means = [], []
        for level, (seen, out) in enumerate(zip(self._cls_sees(tokens), last.cross_out, strict=True)):
            mixed.append(out(seen))
            mixed_means.append(out(means[:, level : level + 1]))
        return self.fused.read_out(last.mix_channels(mixed, mixed_means))

    def _cls_sees(self, tokens: Tensor) -> list[Tensor]:
        """What the cls token of each level sees of the other levels: (B, 1, (levels - 1)·heads·head_dim)."""
        last: Any = self.fused.blocks[-1]
        normed = last.cross_norm(tokens).split(last.lengths, dim=1)
        queries = [x[:, None, :1] @ query for x, query in zip(normed, self.queries, strict=True)]
        seen: list[list[Tensor]] = [[] for _ in normed]
        for other, (x, key, value) in enumerate(zip(normed, self.keys, self.values, strict=True)):
            askers = [level for level in range(self.levels) if level != other]
            asked = torch.cat([queries[level] @ key for level in askers], dim=2).flatten(1, 2)
            weighted = ((asked @ x.mT).softmax(dim=-1) @ x).unflatten(1, (self.heads, len(askers)))
            for level, answer in zip(askers, (weighted @ value).split(1, dim=2), strict=True):
                seen[level].append(answer.transpose(1, 2).flatten(2))
        return [torch.cat(parts, dim=-1) for parts in seen]


def export_split(network: FusedM2OST, body: Path, tail: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Write a network as two graphs: VIEW0 … → TOKENS, MEANS, and these → EXPRESSION.

    Parameters
    ----------
    network : FusedM2OST
        In float32, in eval mode.
    body, tail : Path
        The files to write.

    Returns
    -------
    body, tail : ModelProto
        What was written.

    Raises
    ------
    ExportError
        If a weight is not finite, or a file is not a valid graph with exactly these inputs and outputs.
    """
    check_weights(network)
    geometry = network.config.views
    views = example_views(geometry)
    upper, lower = BodyM2OST(network).eval(), TailM2OST(network).eval()
    with torch.inference_mode():
        between = tuple(given.clone() for given in upper(*views))
    passed = [
        GraphTensor(name, TensorProto.FLOAT, ("batch", *given.shape[1:]))
        for name, given in zip((TOKENS, MEANS), between, strict=True)
    ]
    return write_graph(
        upper,
        body,
        example=views,
        inputs=taken_views(geometry),
        outputs=passed,
        dynamic_shapes={"views": tuple({0: BATCH} for _ in views)},
    ), write_graph(
        lower,
        tail,
        example=between,
        inputs=passed,
        outputs=[GIVEN_EXPRESSION],
        dynamic_shapes={"tokens": {0: BATCH}, "means": {0: BATCH}},
    )


def measure_split_parity(model: M2OST, body: Path, tail: Path, *, batches: Sequence[int] = PARITY_BATCHES) -> Parity:
    """Compare the two graphs, one after the other on ONNX Runtime's CPU, with PyTorch on the same views.

    Parameters
    ----------
    model : M2OST
        The reference, float32.
    body, tail : Path
        The graphs.
    batches : sequence of int
        Batch sizes to compare at.
    """
    upper, lower = (ort.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (body, tail))
    found = {}
    for batch in batches:
        views = probe_views(model.config.views, batch, batch)
        with torch.inference_mode():
            expected = model(*map(torch.from_numpy, views)).numpy()
        between = upper.run([TOKENS, MEANS], dict(zip(model.config.views.names, views, strict=True)))
        actual = lower.run([EXPRESSION], dict(zip((TOKENS, MEANS), between, strict=True)))[0]
        found[batch] = float(np.abs(actual - expected).max())
    return Parity(FP32_TOLERANCE, found)
