"""Sizes of iStar's networks, and the arithmetic that they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

PATCH_PX = 256
"""Side of the squares that ViT-256 sees, in pixels."""

SUPERPIXEL_PX = 16
"""Side of a superpixel, which is a token of ViT-256, in pixels."""

GRID = PATCH_PX // SUPERPIXEL_PX
"""Superpixels along a side of a patch."""

TOKENS = GRID * GRID
"""Superpixels of a patch; ViT-256 has one token more, cls."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of ViT-256, ViT-4K and the head; the defaults are HIPT's and iStar's.

    Parameters
    ----------
    n_genes : int
        Outputs G.
    patch_dim, patch_depth, patch_heads : int
        Width, blocks and attention heads of ViT-256.
    region_dim, region_depth, region_heads : int
        The same of ViT-4K.
    head_dim, head_layers, members : int
        Width and number of the head's hidden layers, and how many such MLPs vote; an odd number.

    Raises
    ------
    ValueError
        If a size cannot be built; says which.
    """

    n_genes: int = 250
    patch_dim: int = 384
    patch_depth: int = 12
    patch_heads: int = 6
    region_dim: int = 192
    region_depth: int = 6
    region_heads: int = 6
    head_dim: int = 256
    head_layers: int = 4
    members: int = 5

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{f.name} must be a positive integer, not {value!r}")
        for name in ("patch", "region"):
            dim, heads = getattr(self, f"{name}_dim"), getattr(self, f"{name}_heads")
            if dim % heads:
                raise ValueError(f"{name}_dim {dim} cannot be split over {heads} heads")
        if self.members % 2 == 0:
            raise ValueError(f"members must be odd, for a median that is one of them, not {self.members}")

    @property
    def feature_dim(self) -> int:
        """Features of a superpixel: ViT-4K's, ViT-256's and three colours; 579 in iStar."""
        return self.region_dim + self.patch_dim + 3

    @property
    def patch_flop(self) -> float:
        """Operations of ViT-256 on one patch (2 × multiply-accumulate, attention included)."""
        embedding = 2 * TOKENS * 3 * SUPERPIXEL_PX**2 * self.patch_dim
        return float(embedding + _transformer_flop(TOKENS + 1, self.patch_dim, self.patch_depth))

    def region_flop(self, patches: int) -> float:
        """Operations of ViT-4K on a grid of ``patches``; they grow with its square."""
        embedding = 2 * patches * self.patch_dim * self.region_dim
        return float(embedding + _transformer_flop(patches + 1, self.region_dim, self.region_depth))

    @property
    def head_flop(self) -> float:
        """Operations of all members of the head on one superpixel."""
        inner = (self.head_layers - 1) * self.head_dim**2
        return float(2 * self.members * (self.feature_dim * self.head_dim + inner + self.head_dim * self.n_genes))

    def to_dict(self) -> dict[str, int]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Sizes:
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        ValueError
            If a field is unknown.
        """
        unknown = sorted(set(raw) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown size of iStar's networks: {', '.join(unknown)}")
        return cls(**raw)


def _transformer_flop(tokens: int, dim: int, depth: int) -> int:
    """Blocks of attention and an MLP of four times the width: 24·n·d² for projections, 4·n²·d for attention."""
    return depth * (24 * tokens * dim * dim + 4 * tokens * tokens * dim)
