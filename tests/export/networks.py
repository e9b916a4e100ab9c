"""Small networks, and how they are exported."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import torch
from m2ost.card import ModelCard
from m2ost.checkpoint import initialise
from m2ost.config import M2OSTConfig
from m2ost.network import M2OST
from m2ost_export.fused import FusedM2OST

SMALL = M2OSTConfig(n_genes=6, depth=1, image_px=64, dim=12, heads=1, head_dim=16, ffn_dim=8, channel_dim=8)
"""Three levels of 16, 32 and 48 patches, one block: every kind of step at next to no arithmetic."""

GENES = tuple(f"g{i}" for i in range(SMALL.n_genes))


@dataclass(frozen=True)
class Exported:
    """A small network, its fp16 form, and that form's graph."""

    model: M2OST
    fused: FusedM2OST
    graph: onnx.ModelProto


def small_network(seed: int = 0, **sizes: int) -> tuple[M2OST, ModelCard]:
    """A network with weights of trained size: freshly initialised ones hardly tell two spots apart."""
    model, card = initialise(M2OSTConfig(**{**SMALL.to_dict(), **sizes}), GENES, seed=seed)
    with torch.no_grad():
        model.head.weight.mul_(4)
    return model, card
