"""Sections in the HER2+ layout whose genes follow the colour of the tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
