"""What is made small in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from ..module import Network
from ..systems.bleep import Bleep
from ..systems.histogene import SlideNetwork

LOSSES = ("mse", "smooth_l1")
"""The squared error, and the one that is linear beyond 1."""


class Objective(nn.Module):
    """A batch's loss: BLEEP's own contrast, and of all others the weighted error.

    Parameters
    ----------
    network : Network
    weight : Tensor, float32, shape (genes,)
        Of each gene's error.
    precision : str
        ``bf16`` (autocast) or ``fp32``, of the network.
    loss : str
        One of :data:`LOSSES`.
    """

    def __init__(self, network: Network, weight: Tensor, precision: str, loss: str = LOSSES[0]) -> None:
        super().__init__()
        self.network, self.weight, self.precision, self.loss = network, weight, precision, loss

    def forward(
        self, views: Tensor, target: Tensor, places: Tensor | None = None, counts: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar.

        Parameters
        ----------
        views : Tensor, shape (B, views, size, size, 3)
            As the network takes each.
        target : Tensor, float32, shape (B, genes)
        places : Tensor, int64, shape (B, 2), optional
            x, y on the array, of all spots of one slide: for networks that predict it as a whole.
        counts : Tensor, float32, shape (B, genes), optional
            Theirs; used by those of the losses that need them.
        """
        if isinstance(self.network, Bleep):
            with autocast(views.device, self.precision):
                return self.network.contrast(views[:, 0], target)
        with autocast(views.device, self.precision):
            if isinstance(self.network, SlideNetwork):
                assert places is not None
                predicted = self.network.slide(self.network.patches(views[:, 0]), places)
            else:
                predicted = self.network(*views.unbind(1))
        return self.error(predicted.float(), target)

    def error(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The weighted error of a prediction, both (B, genes): a scalar."""
        if self.loss == "mse":
            errors = (predicted - target).square()
        else:
            errors = smooth_l1_loss(predicted, target, reduction="none")
        return (errors * self.weight).mean()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """PyTorch's autocast to bfloat16, on where ``precision`` is ``bf16``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
