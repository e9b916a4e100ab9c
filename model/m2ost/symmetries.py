"""What is averaged at inference."""

from __future__ import annotations

import torch
from torch import Tensor

from .architecture import NOTHING
from .module import Network


class Symmetries(Network):
    """A network's mean output over the eight turns and flips of a spot, all views alike; costs eight times as much.

    Parameters
    ----------
    network : Network
        Takes views, uint8 or float in [0, 1].
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.config = network.config
        self.network = network

    def forward(self, *views: Tensor) -> Tensor:
        """Predict expression; see the network's own ``forward`` for shapes."""
        outputs: Tensor = self.network(*map(_eightfold, views))
        return outputs.reshape(8, -1, outputs.shape[-1]).mean(dim=0)

    def decided(self, *views: Tensor) -> Tensor:
        """Where all eight are."""
        return self.network.decided(*map(_eightfold, views)).reshape(8, -1).all(dim=0)


def _eightfold(view: Tensor) -> Tensor:
    """The eight turns and flips of every view: float in [0, 1], shape (8·B, s, s, 3), one symmetry after the other."""
    pixels = view.to(torch.float32) / 255 if view.dtype == torch.uint8 else view
    halves = [pixels, pixels.transpose(1, 2)]
    return torch.cat([half.flip(axes) if axes else half for half in halves for axes in ((), (1,), (2,), (1, 2))])


def with_test_time(network: Network, test_time: str) -> Network:
    """The network with what is averaged at inference, one of ``TEST_TIMES``."""
    return network if test_time == NOTHING else Symmetries(network)
