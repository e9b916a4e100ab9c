"""CrossViT: two vision transformers of different patch sizes that exchange their cls tokens, on one view.

Source: Chen, Fan and Panda, ICCV 2021. Modules bear the names of IBM's state dicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from ..architecture import OneView
from ..module import OneViewNetwork
from .attention import EPS, Block, PatchEmbed, merge_heads, split_heads, start
from .system import PLAIN, Names, Shapes, System, translator

BRANCHES = (0, 1)


@dataclass(frozen=True)
class CrossVitConfig(OneView):
    """Sizes of a CrossViT; the defaults are CrossViT-Small.

    Parameters
    ----------
    branch_px : tuple of int
        Side of the view in each branch; the view is resized bicubically where it is another.
    patch_px : tuple of int
        Side of a patch in each branch.
    dims : tuple of int
        Width of a token in each branch.
    depths : tuple of int
        Blocks of each branch in a stage.
    heads : int
        Attention heads of every block.
    mlp_ratio : int
        Hidden width of the feed-forward networks, in units of ``dims``.
    stages : int
        Each ends with an exchange of cls tokens.

    Raises
    ------
    ValueError
        If a size cannot be built; says which.
    """

    branch_px: tuple[int, ...] = (240, 224)
    patch_px: tuple[int, ...] = (12, 16)
    dims: tuple[int, ...] = (192, 384)
    depths: tuple[int, ...] = (1, 4)
    heads: int = 6
    mlp_ratio: int = 4
    stages: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("branch_px", "patch_px", "dims", "depths"):
            if len(getattr(self, name)) != len(BRANCHES):
                raise ValueError(f"{name} must be two integers, not {getattr(self, name)}")
        for side, patch, dim in zip(self.branch_px, self.patch_px, self.dims, strict=True):
            if side % patch:
                raise ValueError(f"branch_px {side} is not a multiple of patch_px {patch}")
            if dim % self.heads:
                raise ValueError(f"dim {dim} is not a multiple of the {self.heads} heads")

    def tokens(self, branch: int) -> int:
        """Tokens of a branch, cls included: 401 and 197 in CrossViT-Small."""
        return 1 + (self.branch_px[branch] // self.patch_px[branch]) ** 2


class _ClsAttention(nn.Module):
    """The first token attends to all."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in (self.wq(x[:, :1]), self.wk(x), self.wv(x)))
        seen: Tensor = self.proj(merge_heads(scaled_dot_product_attention(q, k, v)))
        return seen


class _Fusion(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = _ClsAttention(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        fused: Tensor = x[:, :1] + self.attn(self.norm1(x))
        return fused


def _project(taken: int, given: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(taken, eps=EPS), nn.GELU(), nn.Linear(taken, given))


class _Stage(nn.Module):
    """Blocks of each branch; then each branch's cls token looks at the other's patches, in the other's width."""

    def __init__(self, config: CrossVitConfig) -> None:
        super().__init__()
        dims = config.dims
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Block(dims[b], config.heads, config.mlp_ratio * dims[b]) for _ in range(config.depths[b])))
            for b in BRANCHES
        )
        self.projs = nn.ModuleList(_project(dims[b], dims[1 - b]) for b in BRANCHES)
        self.fusion = nn.ModuleList(_Fusion(dims[1 - b], config.heads) for b in BRANCHES)
        self.revert_projs = nn.ModuleList(_project(dims[1 - b], dims[b]) for b in BRANCHES)

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        tokens = [blocks(x) for blocks, x in zip(self.blocks, tokens, strict=True)]
        cls = [project(x[:, :1]) for project, x in zip(self.projs, tokens, strict=True)]
        mixed = []
        for b, (fuse, revert) in enumerate(zip(self.fusion, self.revert_projs, strict=True)):
            fused = fuse(torch.cat([cls[b], tokens[1 - b][:, 1:]], dim=1))
            mixed.append(torch.cat([revert(fused), tokens[b][:, 1:]], dim=1))
        return mixed


class CrossVit(OneViewNetwork):
    """Predict a spot with a CrossViT: the mean of what its two branches predict.

    Parameters
    ----------
    config : CrossVitConfig
        The defaults give 26,422,772 parameters.
    """

    def __init__(self, config: CrossVitConfig) -> None:
        super().__init__(config)
        self.branch_px = config.branch_px
        self.pos_embed = nn.ParameterList(torch.empty(1, config.tokens(b), config.dims[b]) for b in BRANCHES)
        self.cls_token = nn.ParameterList(torch.empty(1, 1, config.dims[b]) for b in BRANCHES)
        self.patch_embed = nn.ModuleList(PatchEmbed(config.patch_px[b], config.dims[b]) for b in BRANCHES)
        self.blocks = nn.ModuleList(_Stage(config) for _ in range(config.stages))
        self.norm = nn.ModuleList(nn.LayerNorm(config.dims[b], eps=EPS) for b in BRANCHES)
        self.head = nn.ModuleList(nn.Linear(config.dims[b], config.n_genes) for b in BRANCHES)
        start(self, *self.pos_embed, *self.cls_token)

    def predict(self, pixels: Tensor) -> Tensor:
        """Expression (B, n_genes) from normalised pixels (B, 3, s, s)."""
        tokens = []
        for side, embed, cls, positions in zip(
            self.branch_px, self.patch_embed, self.cls_token, self.pos_embed, strict=True
        ):
            patches = embed(_resized(pixels, side))
            tokens.append(torch.cat([cls.expand(patches.shape[0], -1, -1), patches], dim=1) + positions)
        for stage in self.blocks:
            tokens = stage(tokens)
        first, second = (head(norm(x[:, 0])) for head, norm, x in zip(self.head, self.norm, tokens, strict=True))
        mean: Tensor = (first + second) / 2
        return mean


def _resized(pixels: Tensor, side: int) -> Tensor:
    if pixels.shape[-1] == side:
        return pixels
    return interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False)


NAMES = Names(renames=[(r"^(pos_embed|cls_token)_(\d)$", r"\1.\2")])
"""timm writes a list's number after an underscore."""

_VARIANTS = {
    "tiny": {"dims": (96, 192), "heads": 3},
    "9": {"dims": (128, 256), "depths": (1, 3), "heads": 4, "mlp_ratio": 3},
    "small": {},
    "15": {"depths": (1, 5), "mlp_ratio": 3},
    "18": {"dims": (224, 448), "depths": (1, 6), "heads": 7, "mlp_ratio": 3},
    "base": {"dims": (384, 768), "heads": 12},
}

_FIRST_HEAD_DIM = 32
"""Width of a head in the first branch of every published variant: no weight tells it."""


def _sizes(shape: Shapes) -> CrossVitConfig:
    kernels = [shape(f"patch_embed.{b}.proj.weight", 4) for b in BRANCHES]
    dims = tuple(kernel[0] for kernel in kernels)
    patch_px = tuple(kernel[2] for kernel in kernels)
    branch_px = tuple(patch_px[b] * math.isqrt(shape(f"pos_embed.{b}", 3)[1] - 1) for b in BRANCHES)
    return CrossVitConfig(
        n_genes=shape("head.0.weight", 2)[0],
        image_px=branch_px[1],
        branch_px=branch_px,
        patch_px=patch_px,
        dims=dims,
        depths=tuple(shape.count(rf"blocks\.0\.blocks\.{b}\.(\d+)\.") for b in BRANCHES),
        heads=max(1, dims[0] // _FIRST_HEAD_DIM),
        mlp_ratio=shape("blocks.0.blocks.0.0.mlp.fc1.weight", 2)[0] // dims[0],
        stages=shape.count(r"blocks\.(\d+)\.fusion\."),
    )


TITLE = "CrossViT"

CROSSVIT = System(
    name="crossvit",
    title=TITLE,
    config=CrossVitConfig,
    network=CrossVit,
    form=PLAIN,
    translate=translator(TITLE, NAMES, _sizes),
    pretrained_names=NAMES,
    signature=r"blocks\.0\.blocks\.0\.0\.norm1\.",
    heads=("head.0", "head.1"),
    float32=("head.0", "head.1"),
    tables=("cls_token", "pos_embed"),
    fresh=("head.",),
    variants=_VARIANTS,
)
