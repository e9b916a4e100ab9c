"""Hist2ST: convolutions within a spot, a transformer over all spots of a slide, and a graph of neighbours.

Source: Zeng et al., Briefings in Bioinformatics 2022; built from a description. Modules bear the authors' names.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from .histogene import HEAD_DIM, SlideLevel, SlideNetwork, attention_block, feed_forward_block
from .system import TWO_STAGE, Names, Shapes, System, translator

PATCH_PX, KERNEL, NARROW = 7, 5, 4
"""Side of the first convolution's patches, of the mixers' kernels, and channels of the last convolution."""

NEIGHBOURS, REACH = 4, 2
"""A spot's neighbours: the nearest on the array, as many at most, and none further away than two places."""

DROPOUT = 0.2


@dataclass(frozen=True)
class Hist2StConfig(SlideLevel):
    """Sizes of a Hist2ST; the defaults are those of the authors' class.

    Parameters
    ----------
    channels : int
        Of the convolutions.
    mixers : int
        Convolution mixers.
    graph_layers : int
        Layers over neighbours.
    training_heads : bool
        With the heads that only training needs (zero-inflated counts, self-distillation).

    Raises
    ------
    ValueError
        If a size cannot be built; says which.
    """

    depth: int = 8
    channels: int = 32
    mixers: int = 2
    graph_layers: int = 4
    training_heads: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_px % PATCH_PX:
            raise ValueError(f"image_px {self.image_px} is not a multiple of {PATCH_PX}")

    @property
    def dim(self) -> int:
        """Width of a spot's token: 1024 for views of 112 px."""
        return NARROW * (self.image_px // PATCH_PX) ** 2


def find_neighbours(positions: Tensor, table: int) -> tuple[Tensor, Tensor]:
    """Who lies next to whom on the array: the nearest four within two places, in whatever order the spots come.

    Of places that are equally far the one with the smaller x, then y, goes first.

    Parameters
    ----------
    positions : Tensor of integers, shape (n, 2)
        x and y on the array, each in 0 … table − 1, no two alike.
    table : int

    Returns
    -------
    Tensor of int64, shape (n, 4)
        Rows of the neighbours; 0 for those that are none.
    Tensor of float32, shape (n, 4)
        Their weights in a mean: of m neighbours 1/m each, 0 for those that are none.
    """
    across = range(-REACH, REACH + 1)
    near = [(x * x + y * y, x, y) for x in across for y in across if 0 < x * x + y * y <= REACH * REACH]
    side = table + 2 * REACH  # the array with a margin, so that no step leads from one end of a row to the other
    steps = torch.tensor([x * side + y for _, x, y in sorted(near)])
    places = (positions.long() + REACH) @ torch.tensor([side, 1])
    row_at = torch.full((side * side,), -1).scatter(0, places, torch.arange(positions.shape[0]))
    around = row_at[places[:, None] + steps]
    ranks = torch.arange(len(near))
    first = torch.where(around >= 0, ranks, ranks + len(near)).topk(NEIGHBOURS, dim=1, largest=False).indices
    rows = around.gather(1, first)
    there = (rows >= 0).to(torch.float32)
    return rows.clamp(min=0), there / there.sum(dim=1, keepdim=True).clamp(min=1)


class _Mixer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()

        def along() -> nn.Module:
            return nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)

        norms = [nn.BatchNorm2d(channels) for _ in range(3)]
        self.dw = nn.Sequential(along(), norms[0], nn.GELU(), along(), norms[1], nn.GELU())
        self.pw = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), norms[2])

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.pw(self.dw(x) + x)
        return mixed


class _GraphLayer(nn.Module):
    """The mean of a spot's neighbours, projected; the spot itself is not among them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, spots: Tensor, neighbours: Tensor, shares: Tensor) -> Tensor:
        mean = (spots[neighbours] * shares[..., None]).sum(dim=1)
        return normalize(linear(mean, self.weight).relu(), dim=1)


class _Transformer(nn.Module):
    """The authors' nesting of names: everything between the first convolution and the head."""

    def __init__(self, config: Hist2StConfig) -> None:
        super().__init__()
        dim = config.dim
        self.layer1 = nn.Sequential(*(_Mixer(config.channels) for _ in range(config.mixers)))
        self.layer2 = nn.Sequential(
            *(
                nn.Sequential(
                    OrderedDict(
                        attn=attention_block(dim, config.heads, DROPOUT), ff=feed_forward_block(dim, dim, DROPOUT)
                    )
                )
                for _ in range(config.depth)
            )
        )
        self.layer3 = nn.ModuleList(_GraphLayer(dim) for _ in range(config.graph_layers))
        self.jknet = nn.ModuleList([nn.LSTM(dim, dim, num_layers=2)])
        self.down = nn.Sequential(nn.Conv2d(config.channels, NARROW, 1), nn.Flatten())


class _Vit(nn.Module):
    def __init__(self, config: Hist2StConfig) -> None:
        super().__init__()
        self.transformer = _Transformer(config)


class Hist2St(SlideNetwork):
    """Predict all spots of a slide.

    Parameters
    ----------
    config : Hist2StConfig
        The defaults give 71,776,958 parameters.
    """

    config: Hist2StConfig

    def __init__(self, config: Hist2StConfig) -> None:
        super().__init__(config, config.dim)
        dim, genes = config.dim, config.n_genes
        self.patch_embedding = nn.Conv2d(3, config.channels, PATCH_PX, stride=PATCH_PX)
        self.dropout = nn.Dropout(DROPOUT)
        self.vit = _Vit(config)
        self.gene_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, genes))
        if config.training_heads:
            self.mean, self.disp, self.pi = (nn.Sequential(nn.Linear(dim, genes)) for _ in range(3))
            self.coef = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, view: Tensor, positions: Tensor, neighbours: Tensor, shares: Tensor) -> Tensor:
        """Predict expression.

        Parameters
        ----------
        view : Tensor, shape (n, image_px, image_px, 3)
            A view of each of the slide's spots, RGB; uint8, or float in [0, 1].
        positions : Tensor, int64, shape (n, 2)
            Their x and y on the array, each in 0 … table − 1.
        neighbours : Tensor, int64, shape (n, 4)
            Rows of the spots that lie next to each.
        shares : Tensor, float, shape (n, 4)
            Weights of these in a spot's mean: of m neighbours 1/m each, 0 for those that are none.

        Returns
        -------
        Tensor, float, shape (n, n_genes)
        """
        expression: Tensor = self.gene_head(self._among(self.patches(view), positions, neighbours, shares))
        return expression

    def patches(self, view: Tensor) -> Tensor:
        """See :class:`~m2ost.systems.histogene.SlideNetwork`."""
        vit = self.vit.transformer
        features: Tensor = vit.down(vit.layer1(self.dropout(self.patch_embedding(self.normalise(view)))))
        return features

    def slide(self, features: Tensor, positions: Tensor) -> Tensor:
        """See :class:`~m2ost.systems.histogene.SlideNetwork`; neighbours are found by :func:`find_neighbours`."""
        expression: Tensor = self.gene_head(self.hidden(features, positions))
        return expression

    def hidden(self, features: Tensor, positions: Tensor) -> Tensor:
        """What the heads read: (n, dim) of features (n, dim) and positions, integers (n, 2)."""
        return self._among(features, positions, *find_neighbours(positions, self.config.table))

    def _among(self, features: Tensor, positions: Tensor, neighbours: Tensor, shares: Tensor) -> Tensor:
        vit = self.vit.transformer
        spots = vit.layer2(self.placed(features, positions)[None])[0]
        steps = []
        for layer in vit.layer3:
            spots = layer(spots, neighbours, shares)
            steps.append(spots)
        read: Tensor = vit.jknet[0](torch.stack(steps))[0].mean(dim=0)
        return read

    def example(self, rows: int) -> tuple[Tensor, ...]:
        """Views, positions, neighbours and shares."""
        nobody = torch.zeros(rows, NEIGHBOURS, dtype=torch.int64)
        return *super().example(rows), nobody, torch.zeros(rows, NEIGHBOURS)


NAMES = Names(
    renames=[(r"^(layer[123]|jknet|down)\.", r"vit.transformer.\1.")], dropped=[r"(mean|disp|pi)\.0\.", r"coef\.[02]\."]
)
"""What only training needs is left out."""


def _sizes(shape: Shapes) -> Hist2StConfig:
    dim = shape("x_embed.weight", 2)[1]
    return Hist2StConfig(
        n_genes=shape("gene_head.1.weight", 2)[0],
        image_px=PATCH_PX * round((dim / NARROW) ** 0.5),
        heads=shape("vit.transformer.layer2.0.attn.fn.to_qkv.weight", 2)[0] // 3 // HEAD_DIM,
        depth=shape.count(r"vit\.transformer\.layer2\.(\d+)\."),
        table=shape("x_embed.weight", 2)[0],
        channels=shape("patch_embedding.weight", 4)[0],
        mixers=shape.count(r"vit\.transformer\.layer1\.(\d+)\."),
        graph_layers=shape.count(r"vit\.transformer\.layer3\.(\d+)\."),
    )


TITLE = "Hist2ST"

HIST2ST = System(
    name="hist2st",
    title=TITLE,
    config=Hist2StConfig,
    network=Hist2St,
    form=TWO_STAGE,
    translate=translator(TITLE, NAMES, _sizes),
    signature=r"(vit\.transformer\.)?layer1\.0\.dw\.",
    target="log10_cp10k_panel",
    heads=("gene_head.1",),
    fresh=("gene_head.",),
)
