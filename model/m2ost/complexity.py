"""Parameters and floating-point operations of a network, beside published figures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from m2ost_contract.slide_level import SPOT
from torch.utils.flop_counter import FlopCounterMode

from .architecture import Architecture
from .config import M2OSTConfig
from .systems.registry import build, system_of


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
SLIDE_SPOTS = 378
"""Spots of an average slide of HER2+, for which the cost of slide-level systems is told."""


def count(config: Architecture, *, spots: int = SLIDE_SPOTS) -> Complexity:
    """Count the parameters and operations of ``config``'s network, without allocating it.

    Parameters
    ----------
    config : Architecture
    spots : int
        Spots of a slide, over which a slide-level network is counted.
    """
    system = system_of(config)
    rows = 1 if config.level == SPOT else spots
    with torch.device("meta"):
        network = build(config).eval()
        inputs = network.example(rows)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    parameters = sum(p.numel() for p in network.parameters())
    flop = counter.get_total_flops() / rows
    shared = "" if config.level == SPOT else f", of a slide of {spots}"
    return Complexity(system.title, parameters, flop, f"2×MAC, attention included{shared}")


def joint_attention(config: M2OSTConfig) -> Complexity:
    """The same network with one attention over the tokens of all levels in place of intra- and cross-level mixing.

    Per block: query, key, value and output projections once a token, and attention of every token to every token.
    Intra-level and cross-level attention together look at exactly the same pairs, so the decoupled form spends
    the same on scores and more on projections; what it buys is separate weights and softmaxes per pair of levels.
    """
    lengths = [config.sequence_length(level) for level in config.used_levels]
    tokens, inner = sum(lengths), config.heads * config.head_dim
    intra = 2 * 2 * sum(n * n for n in lengths) * inner + 2 * tokens * 4 * config.dim * inner
    cross = 0
    if len(lengths) > 1:
        pairs = tokens**2 - sum(n * n for n in lengths)
        cross = 2 * 2 * pairs * inner + 2 * tokens * (3 + len(lengths) - 1) * config.dim * inner
    joint = 2 * 2 * tokens**2 * inner + 2 * tokens * 4 * config.dim * inner
    flop = count(config).flop - config.depth * (intra + cross - joint)
    return Complexity("joint attention over all tokens", None, flop, f"{tokens} tokens in one sequence")
