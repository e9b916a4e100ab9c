"""The encoder block of vision transformers, with timm's names."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

EPS = 1e-6
"""Of every norm."""


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, n, dim) → (B, heads, n, dim/heads)."""
    return x.reshape(-1, x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, n, width) → (B, n, heads·width)."""
    return x.transpose(1, 2).reshape(-1, x.shape[2], x.shape[1] * x.shape[3])


class _SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        mixed: Tensor = self.proj(merge_heads(scaled_dot_product_attention(q, k, v)))
        return mixed


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.fc2(self.act(self.fc1(x)))
        return changed


class Block(nn.Module):
    """Self-attention, then a feed-forward network; a norm before and a residual around each."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = _SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = _Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, n, dim); the shape stays."""
        x = x + self.attn(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each."""

    def __init__(self, patch_px: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_px, stride=patch_px)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, s, s) → (B, patches, dim), row by row."""
        return self.proj(pixels).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def start(module: nn.Module, *tables: nn.Parameter) -> None:
    """Initialise a transformer: projections and tables from a truncated normal of 0.02, biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for table in tables:
        nn.init.trunc_normal_(table, std=0.02)
