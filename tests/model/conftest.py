"""A small data set in the HER2+ layout whose genes follow the colour of the tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from m2ost.training.config import config_from
from PIL import Image

GENES = ("RED", "BLUE", "BOTH", "HOUSE")


def write_section(root: Path, name: str, seed: int, spots: int = 16) -> None:
    rng = np.random.default_rng(seed)
    side = 320
    red = np.linspace(40, 220, side)[None, :] + rng.normal(0, 8, (side, side))
    blue = np.linspace(220, 40, side)[:, None] + rng.normal(0, 8, (side, side))
    image = np.stack([red, np.full((side, side), 120.0), blue], axis=-1).clip(0, 255).astype(np.uint8)
    for folder in ("images", "counts", "spots"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "images" / f"{name}.jpg", quality=95)
    centers = rng.integers(20, side - 20, (spots, 2))
    counts, positions = ["\t" + "\t".join(GENES)], ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    for i, (x, y) in enumerate(centers):
        rates = (x, side - y, (x + side - y) / 2, 200)
        counts.append("\t".join([f"{i}x1", *(str(rng.poisson(rate)) for rate in rates)]))
        positions.append(f"{i}\t1\t{i}\t1\t{x}\t{y}\t1")
    (root / "counts" / f"{name}.tsv").write_text("\n".join(counts) + "\n")
    (root / "spots" / f"{name}_selection.tsv").write_text("\n".join(positions) + "\n")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    for seed, name in enumerate(("A1", "A2", "B1", "B2")):
        write_section(root, name, seed)
    (root / "panel.txt").write_text("\n".join(GENES) + "\n")
    return root


@pytest.fixture(scope="session")
def tiny_raw(tiny_data) -> dict:
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
