"""Parameters and floating-point operations of an M2OST, beside published figures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from .config import M2OSTConfig
from .network import M2OST


@dataclass(frozen=True)
class Complexity:
    """Cost of one spot.

    Parameters
    ----------
    name : str
        What is counted.
    parameters : int or None
        Number of parameters.
    flop : float
        Floating-point operations a spot, 2 × multiply-accumulate, attention included.
    note : str
        How to read the figure.
    """

    name: str
    parameters: int | None
    flop: float
    note: str = ""


PAPER = Complexity("M2OST as the paper prints it", 6_810_000, 2.24e9, "MACs by thop: no attention, tables, cls")
ST_NET = Complexity("ST-Net (DenseNet-121)", 7_210_000, 5.67e9, "2×MAC, 250 outputs")


def count(config: M2OSTConfig) -> Complexity:
    """Count the parameters and operations of ``config``'s network, without allocating it."""
    with torch.device("meta"):
        model = M2OST(config).eval()
        views = [torch.empty(1, config.image_px, config.image_px, 3) for _ in range(config.n_levels)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*views)
    parameters = sum(p.numel() for p in model.parameters())
    return Complexity("M2OST", parameters, float(counter.get_total_flops()), "2×MAC, attention included")


def joint_attention(config: M2OSTConfig) -> Complexity:
    """The same network with one attention over the tokens of all levels in place of intra- and cross-level mixing.

    Per block: query, key, value and output projections once a token, and attention of every token to every token.
    Intra-level and cross-level attention together look at exactly the same pairs, so the decoupled form spends
    the same on scores and more on projections; what it buys is separate weights and softmaxes per pair of levels.
    """
    lengths = [config.sequence_length(i) for i in range(config.n_levels)]
    tokens, inner = sum(lengths), config.heads * config.head_dim
    intra = 2 * 2 * sum(n * n for n in lengths) * inner + 2 * tokens * 4 * config.dim * inner
    cross = 0
    if config.n_levels > 1:
        pairs = tokens**2 - sum(n * n for n in lengths)
        cross = 2 * 2 * pairs * inner + 2 * tokens * (3 + config.n_levels - 1) * config.dim * inner
    joint = 2 * 2 * tokens**2 * inner + 2 * tokens * 4 * config.dim * inner
    flop = count(config).flop - config.depth * (intra + cross - joint)
    return Complexity("joint attention over all tokens", None, flop, f"{tokens} tokens in one sequence")
