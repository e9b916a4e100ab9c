"""iStar's networks in PyTorch: HIPT's two and the head that five MLPs vote in.

Source: Zhang et al., Nature Biotechnology 2024. The original trains a head on each slide's own counts; here it is
freshly initialised, so that what it predicts means nothing and only what it costs does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from m2ost.weights import CheckpointError
from m2ost_contract import sha256_file
from torch import Tensor, nn

from ..sizes import Sizes
from .hipt import ViT4K, ViT256, load_vit4k, load_vit256

SLOPE, ALPHA = 0.1, 0.01
"""LeakyReLU's slope in the hidden layers, and ELU's alpha at the output."""


class Head(nn.Module):
    """Superpixel features → expression: the median of several MLPs.

    Parameters
    ----------
    sizes : Sizes
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        widths = [sizes.feature_dim, *[sizes.head_dim] * sizes.head_layers, sizes.n_genes]
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(sizes.members, a, b)) for a, b in pairwise(widths))
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(sizes.members, 1, b)) for b in widths[1:])
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (n, feature_dim) to expression (n, n_genes); it is never negative."""
        x = features.expand(self.weights[0].shape[0], -1, -1)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = nn.functional.elu(x, ALPHA) + ALPHA if layer == last else nn.functional.leaky_relu(x, SLOPE)
        return _median(x.unbind(0))


def _median(planes: Sequence[Tensor]) -> Tensor:
    """Elementwise median of an odd number of tensors, by odd-even transposition: minima and maxima only."""
    ordered = list(planes)
    for turn in range(len(ordered)):
        for i in range(turn % 2, len(ordered) - 1, 2):
            low, high = torch.minimum(ordered[i], ordered[i + 1]), torch.maximum(ordered[i], ordered[i + 1])
            ordered[i], ordered[i + 1] = low, high
    return ordered[len(ordered) // 2]


@dataclass(frozen=True)
class IStar:
    """The three networks, in eval mode, and where their weights come from.

    Parameters
    ----------
    sizes : Sizes
    vit256 : ViT256
    vit4k : ViT4K
    head : Head
    pretrained : bool
        Whether both of HIPT's networks carry its weights. The head's are always random.
    weights : dict of str to str
        sha256 of the files that were read.
    """

    sizes: Sizes
    vit256: ViT256
    vit4k: ViT4K
    head: Head
    pretrained: bool
    weights: dict[str, str]


def build(sizes: Sizes | None = None, *, vit256: Path | None = None, vit4k: Path | None = None, seed: int = 0) -> IStar:
    """iStar's networks, with HIPT's weights where both files are given, else with seeded random ones.

    Parameters
    ----------
    sizes : Sizes, optional
        By default HIPT's and iStar's.
    vit256, vit4k : Path, optional
        HIPT's checkpoints; both or none.
    seed : int
        One seed gives one set of random weights.

    Raises
    ------
    CheckpointError
        If only one file is given, or a file cannot be read.
    """
    if (vit256 is None) != (vit4k is None):
        raise CheckpointError("HIPT's weights are two files: give both, vit256 and vit4k, or neither")
    sizes = sizes or Sizes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = ViT256(sizes), ViT4K(sizes)
        head = Head(sizes)
    if vit256 is None or vit4k is None:
        return IStar(sizes, networks[0].eval(), networks[1].eval(), head.eval(), False, {})
    hashes = {"vit256": sha256_file(vit256), "vit4k": sha256_file(vit4k)}
    return IStar(sizes, load_vit256(vit256, sizes), load_vit4k(vit4k, sizes), head.eval(), True, hashes)
