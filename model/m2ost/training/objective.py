"""What is made small in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..module import Network
from ..systems.bleep import Bleep


class Objective(nn.Module):
    """A batch's loss: BLEEP's own contrast, and of all others the weighted squared error.

    Parameters
    ----------
    network : Network
    weight : Tensor, float32, shape (genes,)
        Of each gene's squared error.
    precision : str
        ``bf16`` (autocast) or ``fp32``, of the network.
    """

    def __init__(self, network: Network, weight: Tensor, precision: str) -> None:
        super().__init__()
        self.network, self.weight, self.precision = network, weight, precision

    def forward(self, views: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar.

        Parameters
        ----------
        views : Tensor, shape (B, views, size, size, 3)
            As the network takes each.
        target : Tensor, float32, shape (B, genes)
        """
        if isinstance(self.network, Bleep):
            with autocast(views.device, self.precision):
                return self.network.contrast(views[:, 0], target)
        with autocast(views.device, self.precision):
            predicted = self.network(*views.unbind(1))
        loss: Tensor = ((predicted.float() - target).square() * self.weight).mean()
        return loss


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """PyTorch's autocast to bfloat16, on where ``precision`` is ``bf16``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
