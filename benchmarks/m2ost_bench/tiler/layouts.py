"""Where spots lie: the layouts that tilers are timed on."""

from __future__ import annotations

from typing import Any

import numpy as np
from m2ost_preprocess.tiling.views import spatial_order

DENSE_PX = 16
DENSE_SIDE = 64
RANDOM_SPOTS = 1000


def layouts(size: tuple[int, int], mpp: float) -> dict[str, Any]:
    """Spots over a whole slide, tissue or not, in the order in which a client sends them.

    Parameters
    ----------
    size : (int, int)
        Width and height of the slide in level-0 pixels.
    mpp : float
        µm per level-0 pixel.

    Returns
    -------
    dict of str to ndarray of int32, each shape (n, 2)
        By name: grids of 200 and 100 µm, 64 × 64 places 16 px apart in the middle, 1,000 places at random.
    """
    width, height = size
    middle = np.array([width // 2, height // 2]) - DENSE_PX * DENSE_SIDE // 2
    dense = np.stack(np.meshgrid(*[np.arange(DENSE_SIDE) * DENSE_PX] * 2), axis=-1).reshape(-1, 2) + middle
    made = {
        "200 µm grid": _grid(size, 200 / mpp),
        "100 µm grid": _grid(size, 100 / mpp),
        "dense, 16 px": dense.clip(0, np.array(size) - 1),
        "random": np.random.default_rng(0).integers((0, 0), size, (RANDOM_SPOTS, 2)),
    }
    return {name: centers[spatial_order(centers)].astype(np.int32) for name, centers in made.items()}


def _grid(size: tuple[int, int], pitch_px: float) -> Any:
    axes = [np.floor(np.arange(pitch_px / 2, side, pitch_px)) for side in size]
    return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
