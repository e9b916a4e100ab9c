"""M2OST written anew for engines: the same weights and, to rounding, the same outputs, in fewer and larger steps.

========================================  ==========================================================================
in :class:`m2ost.network.M2OST`           here
========================================  ==========================================================================
pixels / 255, then a norm                 a norm of the pixels, its eps times 255²
a patch MLP for each level                one run over the patches of all levels
cls token, then a position table          a row of zeros, and the table with the token added to its first row
q, k, v of CTMM: nine projections         one q·k·v projection a level
1/√(head width) on the scores             folded into the weights that make q
a norm and feed-forward for each level    one run over the tokens of all levels
last block: CTMM's output for each token  for cls and for the mean, the only rows that are read
final norm of every token                 of the cls tokens
x·a + x                                   x·(a + 1)
========================================  ==========================================================================

Attention is MatMul, Softmax, MatMul with heads in the second dimension and the scale already in q: the form that
TensorRT documents as fused for FP16 and BF16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from m2ost.config import M2OSTConfig
from m2ost.network import M2OST
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, pad

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Type of weights and of what flows between the steps, by the name of the precision."""

PIXEL_MAX = 255


class _Norm(nn.Module):
    """A LayerNorm, in float32 whatever flows around it: the squares of 768 pixel values exceed float16's range."""

    def __init__(self, norm: Any, dtype: torch.dtype, *, input_scale: float = 1.0) -> None:
        super().__init__()
        self.dtype, self.shape = dtype, norm.normalized_shape
        self.eps = norm.eps * input_scale**2
        self.weight, self.bias = _frozen(norm.weight), _frozen(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x.float(), self.shape, self.weight, self.bias, self.eps).to(self.dtype)


class _Linear(nn.Module):
    """A projection whose weights have the type of what flows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _frozen(weight.to(dtype))
        self.bias = None if bias is None else _frozen(bias.to(dtype))

    @classmethod
    def of(cls, layer: Any, dtype: torch.dtype) -> _Linear:
        return cls(layer.weight, layer.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _QueryKeyValue(nn.Module):
    """One projection of a level's tokens (B, n, dim) to q, k, v, each (B, heads, n, head_dim); q already scaled."""

    def __init__(self, weights: Sequence[Tensor], config: M2OSTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        q, k, v = weights
        self.heads, self.head_dim = config.heads, config.head_dim
        self.project = _Linear(torch.cat([q * config.head_dim**-0.5, k, v]), None, dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.project(x).reshape(-1, x.shape[1], 3 * self.heads, self.head_dim).transpose(1, 2)
        q, k, v = heads.split(self.heads, dim=1)
        return q, k, v


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def _merge_heads(x: Tensor) -> Tensor:
    """(B, heads, n, head_dim) → (B, n, heads·head_dim)."""
    return x.transpose(1, 2).reshape(-1, x.shape[2], x.shape[1] * x.shape[3])


class _FusedBlock(nn.Module):
    """An encoder block. In the last of several levels' blocks only the cls rows are kept."""

    def __init__(self, block: Any, config: M2OSTConfig, dtype: torch.dtype, *, last: bool) -> None:
        super().__init__()
        intra, cross, channel = block.intra, block.cross, block.channel
        self.lengths = [config.sequence_length(level) for level in config.used_levels]
        self.dtype = dtype
        self.self_qkv = nn.ModuleList(_QueryKeyValue(qkv.weight.chunk(3), config, dtype) for qkv in intra.qkv)
        self.self_out = nn.ModuleList(_Linear.of(out, dtype) for out in intra.out)
        norm, widen, _, narrow, _ = intra.feed_forward
        self.feed_norm = _Norm(norm, dtype)
        self.feed = nn.ModuleList([_Linear.of(widen, dtype), _Linear.of(narrow, dtype)])
        self.mixes_levels = len(config.used_levels) > 1
        self.keeps_cls_only = last and self.mixes_levels
        if self.mixes_levels:
            self.cross_norm = _Norm(cross.norm, dtype)
            self.cross_qkv = nn.ModuleList(
                _QueryKeyValue((q.weight, k.weight, v.weight), config, dtype)
                for q, k, v in zip(cross.q, cross.k, cross.v, strict=True)
            )
            self.cross_out = nn.ModuleList(_Linear.of(out, dtype) for out in cross.out)
        norm, squeeze, _, excite, _ = channel.excite
        self.channel_norm = _Norm(norm, dtype)
        self.channel = nn.ModuleList([_Linear.of(squeeze, dtype), _Linear.of(excite, dtype)])

    def forward(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        """Mix sequences (B, n_i, dim); a block that keeps cls only returns (B, 1, dim)."""
        tokens = self.mix_tokens(sequences)
        mixed = self._mix_levels(tokens) if self.mixes_levels else [tokens]
        if self.keeps_cls_only:
            means = [x[:, 1:] for x in mixed]
            mixed = [x[:, :1] for x in mixed]
        else:
            means = [x.mean(dim=1, keepdim=True) for x in mixed]
        return self.mix_channels(mixed, means)

    def mix_tokens(self, sequences: Sequence[Tensor]) -> Tensor:
        """Self-attention within each level, then the feed-forward: the tokens of all levels, (B, Σ n_i, dim)."""
        tokens = torch.cat(
            [
                x + out(_merge_heads(_attend(*qkv(x))))
                for x, qkv, out in zip(sequences, self.self_qkv, self.self_out, strict=True)
            ],
            dim=1,
        )
        widen, narrow = self.feed
        return tokens + gelu(narrow(gelu(widen(self.feed_norm(tokens)))))

    def attend_levels(self, tokens: Tensor) -> list[Tensor]:
        """What the tokens of each level see of the other levels, unprojected: (B, n_i, (levels - 1)·heads·head_dim)."""
        normed = self.cross_norm(tokens).split(self.lengths, dim=1)
        heads = [qkv(x) for qkv, x in zip(self.cross_qkv, normed, strict=True)]
        seen = []
        for level, (query, _, _) in enumerate(heads):
            others = [key_value for other, (_, *key_value) in enumerate(heads) if other != level]
            seen.append(_merge_heads(torch.cat([_attend(query, key, value) for key, value in others], dim=1)))
        return seen

    def mix_channels(self, mixed: Sequence[Tensor], means: Sequence[Tensor]) -> list[Tensor]:
        """Reweight the channels of every level, (B, n, dim), by the means of all levels, each (B, 1, dim)."""
        squeeze, excite = self.channel
        gates = excite(gelu(squeeze(self.channel_norm(torch.cat(list(means), dim=-1))))).sigmoid() + 1
        return [x * gate for x, gate in zip(mixed, gates.chunk(len(mixed), dim=-1), strict=True)]

    def _mix_levels(self, tokens: Tensor) -> list[Tensor]:
        mixed = []
        for seen, out in zip(self.attend_levels(tokens), self.cross_out, strict=True):
            if self.keeps_cls_only:
                # The projection is linear: of the mean of all tokens it is the mean of all projections.
                seen = torch.cat([seen[:, :1], seen.mean(dim=1, keepdim=True)], dim=1)
            mixed.append(out(seen))
        return mixed


class FusedM2OST(nn.Module):
    """A network's weights in a form made for engines.

    Norms and the head work in float32 at every precision: outputs lie around 10, where float16 has steps of 0.008, more
    than a gene that hardly varies does.

    Parameters
    ----------
    model : M2OST
        In float32, with all of its modules.
    precision : str
        One of ``PRECISIONS``.
    """

    def __init__(self, model: M2OST, precision: str = "fp32") -> None:
        super().__init__()
        config = model.config
        embed: Any = model.embed
        self.config, self.precision, self.dtype = config, precision, PRECISIONS[precision]
        self.cut = embed.patches
        self.patch_norms, self.embeddings = nn.ModuleList(), nn.ModuleList()
        for norm, first, _, second, last in embed.embeddings:
            self.patch_norms.append(_Norm(norm, self.dtype, input_scale=PIXEL_MAX))
            self.embeddings.append(
                nn.Sequential(
                    _Linear.of(first, self.dtype),
                    nn.GELU(),
                    _Linear.of(second, self.dtype),
                    _Norm(last, self.dtype),
                )
            )
        self.positions = nn.ParameterList()
        for table in embed.positions:
            row_of_zeros = [0, 0, 0, table.shape[1] - 1]
            self.positions.append(_frozen((table + pad(embed.cls_token, row_of_zeros)).to(self.dtype)))
        self.blocks = nn.ModuleList(
            _FusedBlock(block, config, self.dtype, last=number == config.depth)
            for number, block in enumerate(model.blocks, start=1)
        )
        self.norm = _Norm(model.norm, torch.float32)
        self.head = _Linear.of(model.head, torch.float32)

    def forward(self, *views: Tensor) -> Tensor:
        """Predict expression.

        Parameters
        ----------
        *views : Tensor, uint8, shape (B, image_px, image_px, 3)
            The ``n_levels`` views, fine to coarse, RGB.

        Returns
        -------
        Tensor, float32, shape (B, n_genes)
        """
        sequences = self.embed(views)
        for block in self.blocks:
            sequences = block(sequences)
        return self.read_out(sequences)

    def read_out(self, sequences: Sequence[Tensor]) -> Tensor:
        """The prediction from what the last block leaves of the sequences, (B, 1 or more, dim)."""
        cls = torch.cat([self.norm(x[:, :1]) for x in sequences], dim=-1)
        prediction: Tensor = self.head(cls.flatten(1))
        return prediction

    def embed(self, views: Sequence[Tensor]) -> list[Tensor]:
        """The sequences (B, n_i, dim) of uint8 views, positions added."""
        # TensorRT takes UINT8 inputs only where a cast to float32 or float16 follows at once. Integers to 256 are
        # exact in either, up to the norms, which work in float32.
        taken = torch.float16 if self.dtype == torch.bfloat16 else self.dtype
        used = {level: views[level].to(taken) for level in self.config.used_levels}
        tokens: dict[int, list[Tensor]] = {level: [] for level in used}
        for j, (norm, embed) in enumerate(zip(self.patch_norms, self.embeddings, strict=True)):
            levels = [level for level in used if level >= j]
            patches = torch.cat([self.cut(used[level], j) for level in levels], dim=1)
            parts = embed(norm(patches)).split(self.config.tokens_per_patching, dim=1)
            for level, part in zip(levels, parts, strict=True):
                tokens[level].insert(0, part)
        return [
            pad(torch.cat(parts, dim=1), (0, 0, 1, 0)) + table
            for parts, table in zip(tokens.values(), self.positions, strict=True)
        ]


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone(), requires_grad=False)
