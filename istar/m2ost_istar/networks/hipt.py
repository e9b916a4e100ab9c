"""HIPT's two networks as iStar uses them: ViT-256 on patches, ViT-4K on the grid of their features.

Source: Chen et al., "Scaling Vision Transformers to Gigapixel Images via Hierarchical Self-Supervised Learning", CVPR
2022. Parameters bear the names that HIPT's checkpoints give them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from m2ost.weights import CheckpointError, unpickle_weights
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..sizes import GRID, SUPERPIXEL_PX, Sizes

TABLE = 14
"""Side of both position tables: the networks were trained on 224-px patches and on 14 patches a side."""

CUBIC = -0.75
"""The cubic kernel's free parameter, PyTorch's."""

INIT_STD = 0.02


class Attention(nn.Module):
    """Self-attention, with biases on query, key and value."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, n, dim); the shape stays."""
        n, dim = x.shape[1:]
        q, k, v = self.qkv(x).reshape(-1, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed: Tensor = self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, n, dim))
        return mixed


class FeedForward(nn.Module):
    """Two layers, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, n, dim); the shape stays."""
        mapped: Tensor = self.fc2(self.act(self.fc1(x)))
        return mapped


class Block(nn.Module):
    """Attention and feed-forward network, each behind a LayerNorm and a residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, n, dim); the shape stays."""
        x = x + self.attn(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class Transformer(nn.Module):
    """cls token, position table, blocks and final norm: what the two networks share."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + TABLE * TABLE, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def _initialise(self) -> None:
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def encode(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Run tokens (B, rows·columns, dim) through all blocks; returns them behind cls, (B, 1 + rows·columns, dim)."""
        dim = self.pos_embed.shape[2]
        table = self.pos_embed[0, 1:].reshape(TABLE, TABLE, dim)
        places = interpolate(table, rows, columns).reshape(1, rows * columns, dim)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        x = torch.cat([cls, tokens + places], dim=1)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed


class PatchEmbedding(nn.Module):
    """Squares of 16 px → tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, SUPERPIXEL_PX, SUPERPIXEL_PX)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed patches (B, 256, 256, 3), uint8 or float in [0, 1], as tokens (B, 256, dim)."""
        unit = pixels.to(self.proj.weight.dtype) / 255 if pixels.dtype == torch.uint8 else pixels
        tokens: Tensor = self.proj((unit.permute(0, 3, 1, 2) - 0.5) / 0.5)
        return tokens.flatten(2).transpose(1, 2)


class ViT256(Transformer):
    """ViT-S/16 on patches of 256 px.

    Parameters
    ----------
    sizes : Sizes
        The defaults give HIPT's network with 21,665,664 parameters.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes.patch_dim, sizes.patch_depth, sizes.patch_heads)
        self.patch_embed = PatchEmbedding(sizes.patch_dim)
        self._initialise()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Describe patches.

        Parameters
        ----------
        pixels : Tensor, shape (B, 256, 256, 3)
            RGB, uint8, or float already in [0, 1].

        Returns
        -------
        cls : Tensor, float, shape (B, dim)
        tokens : Tensor, float, shape (B, 256, dim)
            One a superpixel, row by row.
        """
        x = self.encode(self.patch_embed(pixels), GRID, GRID)
        return x[:, 0], x[:, 1:]


class ViT4K(Transformer):
    """A small transformer on the grid of a slide's patch features.

    Parameters
    ----------
    sizes : Sizes
        The defaults give HIPT's network with 2,781,504 parameters.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes.region_dim, sizes.region_depth, sizes.region_heads)
        self.phi = nn.Sequential(nn.Linear(sizes.patch_dim, sizes.region_dim), nn.GELU())
        self._initialise()

    def forward(self, grid: Tensor) -> Tensor:
        """Describe a grid of patches (h, w, patch_dim); returns (h, w, region_dim)."""
        rows, columns, dim = grid.shape
        x = self.encode(self.phi(grid.reshape(1, rows * columns, dim)), rows, columns)
        described: Tensor = x[0, 1:].reshape(rows, columns, -1)
        return described


def interpolate(table: Tensor, rows: int, columns: int) -> Tensor:
    """Resample a position table bicubically: (14, 14, dim) → (rows, columns, dim).

    As HIPT did in training: the scale is that of a size larger by 0.1 (a guard against rounding there), and the border
    repeats itself. Written as two products, so that a graph takes any size.
    """
    padded = table[_clamped(table)][:, _clamped(table)]
    across = torch.tensordot(_cubic_weights(columns, table), padded, dims=([1], [1])).transpose(0, 1)
    resampled: Tensor = torch.tensordot(_cubic_weights(rows, table), across, dims=([1], [0]))
    return resampled


def _clamped(table: Tensor) -> Tensor:
    return torch.arange(-2, TABLE + 2, device=table.device).clamp(0, TABLE - 1)


def _cubic_weights(count: int, table: Tensor) -> Tensor:
    """Weight of each of the table's padded places in each of ``count`` targets: (count, TABLE + 4)."""
    target = torch.arange(count, device=table.device, dtype=table.dtype)
    source = (target + 0.5) * (TABLE / (count + 0.1)) - 0.5
    distance = (source[:, None] - torch.arange(-2, TABLE + 2, device=table.device, dtype=table.dtype)).abs()
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))


def load_vit256(path: Path, sizes: Sizes | None = None) -> ViT256:
    """Read HIPT's ``vit256_small_dino.pth``.

    Parameters
    ----------
    path : Path
        A DINO training checkpoint, or a state dict of the network.
    sizes : Sizes, optional
        By default HIPT's.

    Returns
    -------
    ViT256
        In eval mode, float32.

    Raises
    ------
    CheckpointError
        If the file is missing, asks for code to be run, or does not fit the network (each key is named).
    """
    model = ViT256(sizes or Sizes())
    _load(model, path)
    return model


def load_vit4k(path: Path, sizes: Sizes | None = None) -> ViT4K:
    """Read HIPT's ``vit4k_xs_dino.pth``; see :func:`load_vit256`."""
    model = ViT4K(sizes or Sizes())
    _load(model, path)
    return model


def _load(model: Transformer, path: Path) -> None:
    state = read_teacher(path)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    problems = [f"missing {k}" for k in expected if k not in state]
    problems += [f"unexpected {k}" for k in state if k not in expected]
    problems += [
        f"{k} has shape {tuple(v.shape)}, expected {expected[k]}"
        for k, v in state.items()
        if k in expected and tuple(v.shape) != expected[k]
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"{path} does not fit HIPT's {type(model).__name__}: {shown}")
    model.load_state_dict({k: v.to(torch.float32) for k, v in state.items()})
    model.eval()


def read_teacher(path: Path) -> dict[str, Tensor]:
    """The weights of a DINO checkpoint's teacher, without the projection head and without ever running its code.

    Such a file holds, beside ``student``, ``teacher``, ``optimizer`` and ``epoch``, the run's ``args`` as an
    ``argparse.Namespace``: a bag of attributes whose construction runs nothing, and the one class that is allowed.

    Raises
    ------
    CheckpointError
        If the file is missing, unsafe, or holds no weights.
    """
    raw = unpickle_weights(path, remedy="fetch HIPT's own file anew", allowed=[argparse.Namespace])
    weights = raw.get("teacher", raw) if isinstance(raw, Mapping) else None
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(f"{path}: holds no weights by name, neither as a teacher of DINO nor as a state dict")
    names = {k: str(k).removeprefix("module.").removeprefix("backbone.") for k in weights}
    return {name: weights[k] for k, name in names.items() if not name.startswith("head.")}
