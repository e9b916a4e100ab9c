"""ST-Net: a DenseNet-121 on one view of 224 px.

Source: He et al., Nature Biomedical Engineering 2020; Huang et al., "Densely Connected Convolutional Networks", CVPR
2017. Modules bear torchvision's names.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..architecture import OneView
from ..module import OneViewNetwork
from .system import PLAIN, Names, Shapes, System, translator

_BOTTLENECK = 4
"""Width of a layer's 1×1 convolution, in units of the growth."""


@dataclass(frozen=True)
class StNetConfig(OneView):
    """Sizes of an ST-Net; the defaults are DenseNet-121.

    Parameters
    ----------
    layers : tuple of int
        Layers of each dense block.
    growth : int
        Channels that a layer adds.
    stem : int
        Channels of the first convolution.
    """

    layers: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    stem: int = 64


class _DenseLayer(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, _BOTTLENECK * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(_BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(_BOTTLENECK * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        added = self.conv1(self.norm1(x).relu())
        return torch.cat([x, self.conv2(self.norm2(added).relu())], dim=1)


class _Transition(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.pool(self.conv(self.norm(x).relu()))
        return halved


class StNet(OneViewNetwork):
    """Predict a spot with a DenseNet.

    Parameters
    ----------
    config : StNetConfig
        The defaults give 7,210,106 parameters.
    """

    def __init__(self, config: StNetConfig) -> None:
        super().__init__(config)
        width = config.stem
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(width),
            relu0=nn.ReLU(),
            pool0=nn.MaxPool2d(3, stride=2, padding=1),
        )
        for block, layers in enumerate(config.layers, start=1):
            dense: OrderedDict[str, nn.Module] = OrderedDict()
            for layer in range(1, layers + 1):
                dense[f"denselayer{layer}"] = _DenseLayer(width, config.growth)
                width += config.growth
            parts[f"denseblock{block}"] = nn.Sequential(dense)
            if block < len(config.layers):
                parts[f"transition{block}"] = _Transition(width)
                width //= 2
        parts["norm5"] = nn.BatchNorm2d(width)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(width, config.n_genes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def predict(self, pixels: Tensor) -> Tensor:
        """Expression (B, n_genes) from normalised pixels (B, 3, s, s)."""
        expression: Tensor = self.classifier(self.features(pixels).relu().mean(dim=(2, 3)))
        return expression


NAMES = Names(renames=[(r"\.(norm|conv)\.(\d)\.", r".\1\2.")])
"""Files of torchvision before 2018 have a dot before the number."""


def _sizes(shape: Shapes) -> StNetConfig:
    blocks = shape.count(r"features\.denseblock(\d+)\.")
    return StNetConfig(
        n_genes=shape("classifier.weight", 2)[0],
        layers=tuple(shape.count(rf"features\.denseblock{b}\.denselayer(\d+)\.") for b in range(1, blocks + 1)),
        growth=shape("features.denseblock1.denselayer1.conv2.weight", 4)[0],
        stem=shape("features.conv0.weight", 4)[0],
    )


TITLE = "ST-Net (DenseNet-121)"

STNET = System(
    name="stnet",
    title=TITLE,
    config=StNetConfig,
    network=StNet,
    form=PLAIN,
    translate=translator(TITLE, NAMES, _sizes),
    pretrained_names=NAMES,
    signature=r"features\.denseblock1\.",
    target="log_share_all",
    heads=("classifier",),
    float32=("classifier",),
    fresh=("classifier.",),
)
