"""Each system at sizes that cost next to nothing."""

from __future__ import annotations

from m2ost.architecture import Architecture
from m2ost.systems.registry import find

N_GENES = 5

SIZES: dict[str, dict] = {
    "stnet": {"image_px": 64, "layers": (2, 1), "growth": 4, "stem": 8},
    "resnet50": {"image_px": 64, "layers": (1, 2), "width": 4},
    "vit": {"image_px": 32, "patch_px": 8, "dim": 64, "depth": 2, "hidden": 32},
    "crossvit": {"image_px": 32, "branch_px": (36, 32), "patch_px": (12, 16), "dims": (32, 64), "depths": (1, 2),
                 "heads": 1, "mlp_ratio": 2, "stages": 2},
    "deepspace": {"image_px": 32, "widths": (4, 4, 8, 8, 8), "hidden": 16},
    "bleep": {"image_px": 64, "layers": (1, 1), "width": 4, "embedding_dim": 8, "neighbours": 3, "bank_rows": 7},
    "histogene": {"image_px": 14, "heads": 1, "depth": 2, "dim": 16, "hidden": 8, "table": 8},
    "hist2st": {"image_px": 14, "heads": 1, "depth": 2, "channels": 4, "mixers": 2, "graph_layers": 3, "table": 8},
}  # fmt: skip

SPOT_LEVEL = tuple(name for name in SIZES if name not in ("histogene", "hist2st"))


def small(name: str, **changes) -> Architecture:
    """A small architecture of a system."""
    return find(name).config(n_genes=N_GENES, **{**SIZES[name], **changes})
