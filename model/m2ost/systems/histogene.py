"""HisToGene: a transformer over all spots of a slide.

Source: Pang, Su and Li, bioRxiv 2021. Modules bear the names of the authors' state dicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from m2ost_contract.slide_level import SLIDE
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..architecture import Normalisation, OneView
from ..module import Network, Normalise
from .attention import merge_heads, split_heads
from .system import TWO_STAGE, Names, Shapes, System, translator

HEAD_DIM = 64

HEADS_AT_ONCE = 4
"""In a graph. One at a time would take half the memory, and twice as long to export."""

AS_THEY_ARE = Normalisation(scale=1, layout="x_major")
"""Pixels of 0 … 255, from transposed images."""


@dataclass(frozen=True)
class SlideLevel(OneView):
    """What the slide-level systems have in common.

    Parameters
    ----------
    n_genes, image_px, normalisation
        See :class:`~m2ost.architecture.OneView`. Pixels are taken as they are, from transposed images.
    heads : int
        Attention heads, of 64 each.
    depth : int
        Transformer blocks.
    table : int
        Positions on an array that are known along each axis: 0 … table − 1.
    most_spots : int
        Spots of the largest slide that is taken: memory grows with their square; a graph takes under 2 GiB at 5,000.
    """

    level: ClassVar[str] = SLIDE

    image_px: int = 112
    normalisation: Normalisation = AS_THEY_ARE
    heads: int = 16
    depth: int = 4
    table: int = 64
    most_spots: int = 5000

    @property
    def positions(self) -> dict[str, Any]:
        """Positions on an array."""
        return {"table": self.table}

    @property
    def max_spots(self) -> int:
        """Most spots of a slide."""
        return self.most_spots


@dataclass(frozen=True)
class HisToGeneConfig(SlideLevel):
    """Sizes of a HisToGene; the defaults are those of the authors' class.

    Parameters
    ----------
    dim : int
        Width of a spot's token.
    hidden : int
        Hidden width of the feed-forward networks.
    """

    dim: int = 1024
    hidden: int = 2048


class _PreNorm(nn.Module):
    """x + fn(norm(x))."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.fn(self.norm(x))
        return changed


class _SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * HEAD_DIM
        self.to_qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.to_qkv(x).chunk(3, dim=-1))
        # A graph keeps a matrix of spots × spots for each head that is computed at once.
        groups = math.ceil(self.heads / HEADS_AT_ONCE) if torch.compiler.is_exporting() else 1
        parts = (part.chunk(groups, dim=1) for part in (q, k, v))
        heads = [scaled_dot_product_attention(*qkv) for qkv in zip(*parts, strict=True)]
        mixed: Tensor = self.to_out(merge_heads(torch.cat(heads, dim=1)))
        return mixed


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.net(x)
        return changed


def attention_block(dim: int, heads: int, dropout: float) -> nn.Module:
    """Self-attention over spots (1, n, dim), with its norm and residual."""
    return _PreNorm(dim, _SelfAttention(dim, heads, dropout))


def feed_forward_block(dim: int, hidden: int, dropout: float) -> nn.Module:
    """A feed-forward network on spots (1, n, dim), with its norm and residual."""
    return _PreNorm(dim, _FeedForward(dim, hidden, dropout))


class SlideNetwork(Network):
    """A network that predicts all spots of a slide together, from a view and a position of each."""

    config: SlideLevel

    def __init__(self, config: SlideLevel, dim: int) -> None:
        super().__init__()
        self.config = config
        self.normalise = Normalise(config.normalisation)
        self.x_embed = nn.Embedding(config.table, dim)
        self.y_embed = nn.Embedding(config.table, dim)

    @property
    def dim(self) -> int:
        """Numbers of a spot that pass from the stage for patches to the stage for slides."""
        return self.x_embed.embedding_dim

    def patches(self, view: Tensor) -> Tensor:
        """The stage for patches: a view of each of n spots, (n, image_px, image_px, 3) → features (n, dim)."""
        raise NotImplementedError

    def slide(self, features: Tensor, positions: Tensor) -> Tensor:
        """The stage for slides: features (n, dim) and positions, integers (n, 2), → expression (n, n_genes)."""
        raise NotImplementedError

    def placed(self, features: Tensor, positions: Tensor) -> Tensor:
        """Features (n, dim) with their positions on the array, x and y, integers (n, 2), added."""
        placed: Tensor = features + self.x_embed(positions[:, 0]) + self.y_embed(positions[:, 1])
        return placed

    def example(self, rows: int) -> tuple[Tensor, ...]:
        """Views and positions."""
        return *super().example(rows), torch.zeros(rows, 2, dtype=torch.int64)


class _Layers(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers


class _Vit(nn.Module):
    """The authors' nesting of names."""

    def __init__(self, config: HisToGeneConfig, dropout: float) -> None:
        super().__init__()
        blocks = (
            nn.Sequential(
                attention_block(config.dim, config.heads, dropout),
                feed_forward_block(config.dim, config.hidden, dropout),
            )
            for _ in range(config.depth)
        )
        self.transformer = _Layers(nn.Sequential(*blocks))

    def forward(self, spots: Tensor) -> Tensor:
        mixed: Tensor = self.transformer.layers(spots)
        return mixed


DROPOUT = 0.1


class HisToGene(SlideNetwork):
    """Predict all spots of a slide.

    Parameters
    ----------
    config : HisToGeneConfig
        The defaults give 72,512,762 parameters.
    """

    def __init__(self, config: HisToGeneConfig) -> None:
        super().__init__(config, config.dim)
        self.patch_embedding = nn.Linear(3 * config.image_px**2, config.dim)
        self.dropout = nn.Dropout(DROPOUT)
        self.vit = _Vit(config, DROPOUT)
        self.gene_head = nn.Sequential(nn.LayerNorm(config.dim), nn.Linear(config.dim, config.n_genes))

    def forward(self, view: Tensor, positions: Tensor) -> Tensor:
        """Predict expression.

        Parameters
        ----------
        view : Tensor, shape (n, image_px, image_px, 3)
            A view of each of the slide's spots, RGB; uint8, or float in [0, 1].
        positions : Tensor, int64, shape (n, 2)
            Their x and y on the array, each in 0 … table − 1.

        Returns
        -------
        Tensor, float, shape (n, n_genes)
        """
        return self.slide(self.patches(view), positions)

    def patches(self, view: Tensor) -> Tensor:
        """See :class:`SlideNetwork`."""
        x_y_channel = self.normalise(view).permute(0, 2, 3, 1).flatten(1)
        features: Tensor = self.patch_embedding(x_y_channel)
        return features

    def slide(self, features: Tensor, positions: Tensor) -> Tensor:
        """See :class:`SlideNetwork`."""
        spots = self.dropout(self.placed(features, positions))
        expression: Tensor = self.gene_head(self.vit(spots[None])[0])
        return expression


def _sizes(shape: Shapes) -> HisToGeneConfig:
    dim, inputs = shape("patch_embedding.weight", 2)
    return HisToGeneConfig(
        n_genes=shape("gene_head.1.weight", 2)[0],
        image_px=round((inputs / 3) ** 0.5),
        heads=shape("vit.transformer.layers.0.0.fn.to_qkv.weight", 2)[0] // 3 // HEAD_DIM,
        depth=shape.count(r"vit\.transformer\.layers\.(\d+)\."),
        table=shape("x_embed.weight", 2)[0],
        dim=dim,
        hidden=shape("vit.transformer.layers.0.1.fn.net.0.weight", 2)[0],
    )


TITLE = "HisToGene"

HISTOGENE = System(
    name="histogene",
    title=TITLE,
    config=HisToGeneConfig,
    network=HisToGene,
    form=TWO_STAGE,
    translate=translator(TITLE, Names(), _sizes),
    signature=r"vit\.transformer\.layers\.0\.0\.fn\.",
    target="log10_cp10k_panel",
    heads=("gene_head.1",),
    fresh=("gene_head.",),
    variants={"4": {}, "8": {"depth": 8}},
)
