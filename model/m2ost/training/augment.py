"""One random transform a spot, the same for all of its views."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density of haematoxylin, eosin and a residual in R, G, B (Ruifrok and Johnston 2001)."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How strongly spots are varied in training.

    Parameters
    ----------
    dihedral : bool
        One of the eight turns and flips of a square.
    stain : float
        Standard deviation of the factor on each stain's density.
    brightness : float
        Standard deviation of the shift of the optical density, all channels alike.
    """

    dihedral: bool = True
    stain: float = 0.1
    brightness: float = 0.03

    def __post_init__(self) -> None:
        if self.stain < 0 or self.brightness < 0:
            raise ValueError("augment.stain and augment.brightness must not be negative")


def augment(views: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Vary a batch of spots; one draw a spot, applied alike to its views.

    Parameters
    ----------
    views : Tensor of uint8, shape (B, views, size, size, 3)
    config : AugmentConfig
    generator : torch.Generator
        On the CPU: the draws do not depend on the device.

    Returns
    -------
    Tensor of float32, the same shape, in [0, 1]
    """
    n = views.shape[0]
    if config.dihedral:
        turns, flips = (torch.randint(k, (n,), generator=generator) for k in (4, 2))
        views = turn(views, turns.to(views.device), flips.to(views.device))
    if config.stain == 0 and config.brightness == 0:
        return views.float() / 255
    factors = 1 + config.stain * torch.randn(n, 3, generator=generator)
    shifts = config.brightness * torch.randn(n, generator=generator)
    return vary_stain(views, factors.to(views.device), shifts.to(views.device))


def turn(views: Tensor, turns: Tensor, flips: Tensor) -> Tensor:
    """Turn spot i by ``turns[i]`` quarter turns, then mirror it where ``flips[i]`` is 1. Shapes as in ``augment``."""
    turned = torch.empty_like(views)
    for k in range(4):
        for flip in range(2):
            rows = torch.nonzero((turns == k) & (flips == flip)).reshape(-1)
            if len(rows):
                one = torch.rot90(views[rows], k, (2, 3))
                turned[rows] = one.flip(3) if flip else one
    return turned


def vary_stain(views: Tensor, factors: Tensor, shifts: Tensor) -> Tensor:
    """Scale the density of each stain and shift the whole.

    Parameters
    ----------
    views : Tensor of uint8, shape (B, views, size, size, 3)
    factors : Tensor, shape (B, 3)
        Of haematoxylin, eosin and the residual; 1 changes nothing.
    shifts : Tensor, shape (B,)
        Added to the optical density.

    Returns
    -------
    Tensor of float32, the same shape, in [0, 1]
    """
    stains = torch.nn.functional.normalize(torch.tensor(STAINS, device=views.device), dim=1)
    mixing = torch.linalg.inv(stains) @ (factors[:, :, None] * stains)
    # Density of the 256 values of a pixel; 0 stands for half a step, its density for a finite one.
    table = -torch.log(torch.arange(256, device=views.device).clamp(min=0.5) / 255)
    density = table[views.int()].flatten(1, 3) @ mixing + shifts[:, None, None]
    return torch.exp(-density).clamp(0, 1).reshape(views.shape)
