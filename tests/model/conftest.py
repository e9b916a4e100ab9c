"""A small data set in the HER2+ layout whose genes follow the colour of the tissue."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from m2ost.training.config import config_from

from .sections import GENES, write_section


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    for seed, name in enumerate(("A1", "A2", "B1", "B2")):
        write_section(root, name, seed)
    (root / "panel.txt").write_text("\n".join(GENES) + "\n")
    return root


@pytest.fixture(scope="session")
def tiny_raw(heavy, tiny_data) -> dict:
    """Settings that train in a second or two."""
    return yaml.safe_load(
        f"""
        data: {{root: {tiny_data}, panel: {tiny_data / "panel.txt"}, cache: {tiny_data / "cache"}}}
        split: {{train: [A1, A2], validation: [B1], test: [B2]}}
        model: {{image_px: 32, depth: 1, dim: 12, heads: 1, head_dim: 12, ffn_dim: 8, channel_dim: 8,
                 mask_ratio: 0.2, token_drop: 0.2}}
        optim: {{epochs: 4, batch_size: 8, learning_rate: 3.0e-3, precision: fp32, ema: 0.5}}
        """
    )


@pytest.fixture
def tiny_config(tiny_raw):
    return config_from(tiny_raw, "tiny")
