"""Narrow networks of iStar's."""

from __future__ import annotations

import pytest
from m2ost.peers.istar import build
from m2ost_preprocess.istar.sizes import Sizes

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


@pytest.fixture(scope="session")
def narrow():
    return build(NARROW)
