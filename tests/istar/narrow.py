"""Narrow networks of iStar's, and the networks on PyTorch, against which graphs are held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from m2ost_istar.export import build_istar
from m2ost_istar.networks.istar import build
from m2ost_istar.sizes import Sizes

from tests.support.once import made_once

NARROW = Sizes(
    n_genes=6,
    patch_dim=24,
    patch_depth=1,
    patch_heads=2,
    region_dim=12,
    region_depth=1,
    region_heads=2,
    head_dim=8,
    head_layers=2,
    members=3,
)


GENES = tuple("abcdef")


def exported(factory: pytest.TempPathFactory) -> Path:
    """They, with random weights, as a folder that Triton loads."""
    return made_once(factory, "istar", lambda folder: build_istar(build(NARROW), GENES, folder / "istar")) / "istar"


class TorchNetworks:
    """``pipeline.Networks`` without a graph."""

    def __init__(self, model):
        self.sizes, self._model = model.sizes, model

    @torch.inference_mode()
    def patch(self, pixels):
        return tuple(output.numpy() for output in self._model.vit256(torch.tensor(pixels)))

    @torch.inference_mode()
    def region(self, cls_grid):
        return self._model.vit4k(torch.tensor(cls_grid)).numpy()

    @torch.inference_mode()
    def head(self, features):
        return self._model.head(torch.tensor(features)).numpy()
