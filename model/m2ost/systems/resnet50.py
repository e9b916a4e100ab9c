"""ResNet-50 on one view of 224 px.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with the stride in the 3×3 convolution as
torchvision and timm have it. Modules bear their names.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from ..architecture import OneView
from ..module import OneViewNetwork
from .system import PLAIN, Names, Shapes, System, translator

EXPANSION = 4
"""Width of a block's output, in units of its inner width."""


@dataclass(frozen=True)
class ResNet50Config(OneView):
    """Sizes of a ResNet of bottlenecks; the defaults are ResNet-50.

    Parameters
    ----------
    layers : tuple of int
        Blocks of each stage.
    width : int
        Inner width of the first stage; doubled by each next.
    """

    layers: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64

    @property
    def feature_dim(self) -> int:
        """Channels after the last stage."""
        return EXPANSION * self.width << (len(self.layers) - 1)


class _Bottleneck(nn.Module):
    def __init__(self, taken: int, width: int, stride: int) -> None:
        super().__init__()
        given = EXPANSION * width
        self.conv1 = nn.Conv2d(taken, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, given, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(given)
        self.downsample = nn.Sequential()
        if stride != 1 or taken != given:
            self.downsample.append(nn.Conv2d(taken, given, 1, stride=stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(given))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        changed: Tensor = self.bn3(self.conv3(inner)) + self.downsample(x)
        return changed.relu()


def trunk(layers: tuple[int, ...], width: int) -> OrderedDict[str, nn.Module]:
    """The steps from pixels (B, 3, s, s) to pooled features (B, feature_dim), by their public names."""
    steps: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    )
    taken = width
    for stage, blocks in enumerate(layers):
        inner = width << stage
        parts = []
        for block in range(blocks):
            parts.append(_Bottleneck(taken, inner, stride=2 if stage and not block else 1))
            taken = EXPANSION * inner
        steps[f"layer{stage + 1}"] = nn.Sequential(*parts)
    steps["avgpool"] = nn.AdaptiveAvgPool2d(1)
    steps["flatten"] = nn.Flatten()
    for step in steps.values():
        for module in step.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _Bottleneck):
                # Each block starts as the identity: fresh networks of any depth give outputs of ordinary size.
                nn.init.zeros_(module.bn3.weight)
    return steps


class ResNet50(OneViewNetwork):
    """Predict a spot with a ResNet.

    Parameters
    ----------
    config : ResNet50Config
        The defaults give 24,020,282 parameters.
    """

    def __init__(self, config: ResNet50Config) -> None:
        super().__init__(config)
        steps = trunk(config.layers, config.width)
        self.steps = tuple(steps)
        for name, step in steps.items():
            self.add_module(name, step)
        self.fc = nn.Linear(config.feature_dim, config.n_genes)

    def predict(self, pixels: Tensor) -> Tensor:
        """Expression (B, n_genes) from normalised pixels (B, 3, s, s)."""
        for name in self.steps:
            pixels = self.get_submodule(name)(pixels)
        expression: Tensor = self.fc(pixels)
        return expression


def trunk_sizes(shape: Shapes, prefix: str = "") -> tuple[tuple[int, ...], int]:
    """``layers`` and ``width`` of a trunk whose keys begin with ``prefix``."""
    stages = shape.count(rf"{prefix}layer(\d+)\.")
    layers = tuple(shape.count(rf"{prefix}layer{stage}\.(\d+)\.") for stage in range(1, stages + 1))
    return layers, shape(f"{prefix}conv1.weight", 4)[0]


def _sizes(shape: Shapes) -> ResNet50Config:
    layers, width = trunk_sizes(shape)
    return ResNet50Config(n_genes=shape("fc.weight", 2)[0], layers=layers, width=width)


TITLE = "ResNet-50"

RESNET50 = System(
    name="resnet50",
    title=TITLE,
    config=ResNet50Config,
    network=ResNet50,
    form=PLAIN,
    translate=translator(TITLE, Names(), _sizes),
    signature=r"layer1\.0\.conv1\.",
    heads=("fc",),
    float32=("fc",),
    fresh=("fc.",),
)
