"""DeepSpaCE: a VGG-16 on one view of 224 px that covers 2.5 spot diameters.

Source: Monjo et al., Scientific Reports 2022; Simonyan and Zisserman, ICLR 2015. Modules bear torchvision's names.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..architecture import OneView
from ..module import OneViewNetwork
from .system import PLAIN, Names, Shapes, System, translator

DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions before each halving."""

SPOT_DIAMETERS = 2.5
"""Side of the view, in diameters of a spot."""

DROPOUT = 0.5


@dataclass(frozen=True)
class DeepSpaceConfig(OneView):
    """Sizes of a DeepSpaCE; the defaults are VGG-16.

    Parameters
    ----------
    widths : tuple of int
        Channels before each of the five halvings.
    hidden : int
        Width of the two hidden layers.

    Raises
    ------
    ValueError
        If the view cannot be halved five times, or there are not five widths.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.widths) != len(DEPTHS):
            raise ValueError(f"widths must be {len(DEPTHS)} integers, not {self.widths}")
        if self.image_px % 2 ** len(DEPTHS):
            raise ValueError(f"image_px {self.image_px} cannot be halved {len(DEPTHS)} times")


def view_mpp(spot_diameter_um: float, image_px: int = 224) -> float:
    """µm per view pixel at which a view covers ``SPOT_DIAMETERS`` diameters of a spot: 1.116 for 100 µm."""
    return SPOT_DIAMETERS * spot_diameter_um / image_px


class DeepSpace(OneViewNetwork):
    """Predict a spot with a VGG-16.

    Parameters
    ----------
    config : DeepSpaceConfig
        The defaults give 135,284,794 parameters.
    """

    def __init__(self, config: DeepSpaceConfig) -> None:
        super().__init__(config)
        steps: list[nn.Module] = []
        taken = 3
        for width, depth in zip(config.widths, DEPTHS, strict=True):
            for _ in range(depth):
                convolution = nn.Conv2d(taken, width, 3, padding=1)
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                steps += [convolution, nn.ReLU()]
                taken = width
            steps.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*steps)
        self.classifier = nn.Sequential(
            nn.Linear(taken * (config.image_px >> len(DEPTHS)) ** 2, config.hidden),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(config.hidden, config.hidden),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(config.hidden, config.n_genes),
        )

    def predict(self, pixels: Tensor) -> Tensor:
        """Expression (B, n_genes) from normalised pixels (B, 3, s, s)."""
        expression: Tensor = self.classifier(self.features(pixels).flatten(1))
        return expression


def _sizes(shape: Shapes) -> DeepSpaceConfig:
    widths, step = [], 0
    for depth in DEPTHS:
        widths.append(shape(f"features.{step}.weight", 4)[0])
        step += 2 * depth + 1
    hidden, features = shape("classifier.0.weight", 2)
    return DeepSpaceConfig(
        n_genes=shape("classifier.6.weight", 2)[0],
        image_px=round((features / widths[-1]) ** 0.5) << len(DEPTHS),
        widths=tuple(widths),
        hidden=hidden,
    )


TITLE = "DeepSpaCE (VGG-16)"

DEEPSPACE = System(
    name="deepspace",
    title=TITLE,
    config=DeepSpaceConfig,
    network=DeepSpace,
    form=PLAIN,
    translate=translator(TITLE, Names(), _sizes),
    signature=r"features\.28\.",
    target="minmax_log10",
    heads=("classifier.6",),
    float32=("classifier.6",),
    fresh=("classifier.6.",),
    may_lack=("classifier.",),
)
