"""A vision transformer, ViT-B/16 or ViT-S/16, on one view of 224 px.

Source: Dosovitskiy et al., ICLR 2021. Modules bear timm's names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..architecture import OneView
from ..module import OneViewNetwork
from .attention import EPS, Block, PatchEmbed, start
from .system import PLAIN, Names, Shapes, System, translator

HEAD_DIM = 64


@dataclass(frozen=True)
class VitConfig(OneView):
    """Sizes of a vision transformer; the defaults are ViT-B/16.

    Parameters
    ----------
    patch_px : int
        Side of a patch; divides the view's.
    dim : int
        Width of a token; a multiple of 64, the width of a head.
    depth : int
        Encoder blocks.
    hidden : int
        Hidden width of the feed-forward networks.

    Raises
    ------
    ValueError
        If a size cannot be built; says which.
    """

    patch_px: int = 16
    dim: int = 768
    depth: int = 12
    hidden: int = 3072

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_px % self.patch_px:
            raise ValueError(f"image_px {self.image_px} is not a multiple of patch_px {self.patch_px}")
        if self.dim % HEAD_DIM:
            raise ValueError(f"dim {self.dim} is not a multiple of {HEAD_DIM}, the width of a head")


class Vit(OneViewNetwork):
    """Predict a spot with a vision transformer.

    Parameters
    ----------
    config : VitConfig
        The defaults give 85,990,906 parameters.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__(config)
        patches = (config.image_px // config.patch_px) ** 2
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patches, config.dim))
        self.patch_embed = PatchEmbed(config.patch_px, config.dim)
        heads = config.dim // HEAD_DIM
        self.blocks = nn.Sequential(*(Block(config.dim, heads, config.hidden) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.dim, eps=EPS)
        self.head = nn.Linear(config.dim, config.n_genes)
        start(self, self.cls_token, self.pos_embed)

    def predict(self, pixels: Tensor) -> Tensor:
        """Expression (B, n_genes) from normalised pixels (B, 3, s, s)."""
        patches = self.patch_embed(pixels)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        expression: Tensor = self.head(self.norm(self.blocks(tokens)[:, 0]))
        return expression


NAMES = Names(
    renames=[
        (r"^class_token$", "cls_token"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.ln\.", "norm."),
        (r"^heads\.head\.", "head."),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
        (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    ]
)
"""torchvision's names; timm's are the network's own."""


def _sizes(shape: Shapes) -> VitConfig:
    dim, _, patch_px, _ = shape("patch_embed.proj.weight", 4)
    return VitConfig(
        n_genes=shape("head.weight", 2)[0],
        image_px=patch_px * math.isqrt(shape("pos_embed", 3)[1] - 1),
        patch_px=patch_px,
        dim=dim,
        depth=shape.count(r"blocks\.(\d+)\."),
        hidden=shape("blocks.0.mlp.fc1.weight", 2)[0],
    )


TITLE = "ViT"

VIT = System(
    name="vit",
    title=TITLE,
    config=VitConfig,
    network=Vit,
    form=PLAIN,
    translate=translator(TITLE, NAMES, _sizes),
    pretrained_names=NAMES,
    signature=r"(blocks\.0\.attn\.qkv|encoder\.layers\.encoder_layer_0)\.",
    heads=("head",),
    float32=("head",),
    tables=("cls_token", "pos_embed"),
    fresh=("head.",),
    variants={"b16": {}, "s16": {"dim": 384, "hidden": 1536}},
)
