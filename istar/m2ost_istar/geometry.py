"""What iStar does to a slide, counted before a pixel is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from m2ost_preprocess.readers.resolution import MPP_PLAUSIBLE
from m2ost_preprocess.slides.tissue import Mask, cell_tissue

from .sizes import GRID, PATCH_PX, SUPERPIXEL_PX, TOKENS, Sizes

MPP = 0.5
"""µm/px that every slide is rescaled to."""

TILE_PX = 4096
"""Side of the tiles that a pass is cut into, in pixels: 256 patches, iStar's mini-batch."""

MARGIN_PX, STRIDE_PX = 256, 64
"""A shifted pass leaves out 256 px of each axis; its origin is one of 0, 64, 128, 192 on each."""

TILE_PATCHES = TILE_PX // PATCH_PX
SHIFT_SUPERPIXELS = STRIDE_PX // SUPERPIXEL_PX
"""Superpixels between two shifts: all that ViT-4K says is constant over squares of that side."""

WHITE = -1
"""Row and column of the white patch, which stands for all patches without tissue."""

Positions = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class Variant:
    """One way to run iStar.

    Parameters
    ----------
    name : str
    starts : tuple of int
        Where passes begin along each axis, in pixels, ascending; there is a pass for every pair of them.
    tissue_only : bool
        Whether only patches that hold tissue go through ViT-256, and only superpixels inside spots through the head.
        All other patches take the features of one white patch.
    """

    name: str
    starts: tuple[int, ...] = (0,)
    tissue_only: bool = False

    @property
    def shifts(self) -> tuple[tuple[int, int], ...]:
        """Origin (y, x) of every pass in pixels."""
        return tuple((y, x) for y in self.starts for x in self.starts)

    @property
    def shifted(self) -> bool:
        """Whether there is more than one pass."""
        return len(self.starts) > 1


VARIANTS = {
    v.name: v
    for v in (
        Variant("stock", tuple(range(0, MARGIN_PX, STRIDE_PX))),
        Variant("no_shift"),
        Variant("tissue", tissue_only=True),
    )
}
"""``stock``: as shipped. ``no_shift``: its own option, one pass. ``tissue``: one pass over the tissue only."""


@dataclass(frozen=True)
class Plan:
    """iStar's work on one slide.

    Parameters
    ----------
    variant : Variant
    sizes : Sizes
    size_px : (int, int)
        Width and height of level 0.
    scaled_px, padded_px : (int, int)
        Width and height at 0.5 µm/px, and padded to a multiple of 256.
    pass_px : (int, int)
        Width and height of what one pass sees, before it is padded to tiles.
    region_grid : (int, int)
        Rows and columns of patches that ViT-4K sees at once.
    superpixels : int
        Superpixels that go through the head.
    positions : ndarray of int32, shape (n, 3)
        Index of the shift, row and column of every patch that goes through ViT-256, in order.
    """

    variant: Variant
    sizes: Sizes
    size_px: tuple[int, int]
    scaled_px: tuple[int, int]
    padded_px: tuple[int, int]
    pass_px: tuple[int, int]
    region_grid: tuple[int, int]
    superpixels: int
    positions: Positions = field(repr=False, compare=False)

    @property
    def passes(self) -> int:
        """Passes over the slide, and forwards of ViT-4K."""
        return len(self.variant.shifts)

    @property
    def tiles(self) -> int:
        """Tiles of 4096 px in all passes; 0 where only tissue is seen, patch by patch."""
        return 0 if self.variant.tissue_only else len(self.positions) // TILE_PATCHES**2

    @property
    def forwards(self) -> int:
        """Forwards of ViT-256."""
        return len(self.positions)

    @property
    def superpixel_grid(self) -> tuple[int, int]:
        """Rows and columns of superpixels of the padded slide."""
        return self.padded_px[1] // SUPERPIXEL_PX, self.padded_px[0] // SUPERPIXEL_PX

    @cached_property
    def flop(self) -> dict[str, float]:
        """Operations by stage: ``patch`` (ViT-256), ``region`` (ViT-4K) and ``head``."""
        return {
            "patch": self.forwards * self.sizes.patch_flop,
            "region": self.passes * self.sizes.region_flop(math.prod(self.region_grid)),
            "head": self.superpixels * self.sizes.head_flop,
        }

    @property
    def total_flop(self) -> float:
        """Operations of all stages."""
        return sum(self.flop.values())

    @property
    def slide_bytes(self) -> int:
        """Memory for the rescaled slide as uint8: held only where several passes read it, else 0."""
        return 3 * math.prod(self.padded_px) if self.variant.shifted else 0

    @property
    def feature_bytes(self) -> int:
        """Memory for all features: ViT-256's tokens with colours, its cls, and ViT-4K's, one every 64 px."""
        rows, columns = self.superpixel_grid
        tokens = self.forwards * TOKENS if self.variant.tissue_only else rows * columns
        region = rows * columns * self.sizes.region_dim // SHIFT_SUPERPIXELS**2
        cls = self.passes * math.prod(self.region_grid) * self.sizes.patch_dim
        return 4 * (tokens * (self.sizes.patch_dim + 3) + cls + region)

    @property
    def region_bytes(self) -> int:
        """Memory for the attention of one block of ViT-4K, scores and their softmax, all heads."""
        return 2 * 4 * self.sizes.region_heads * (math.prod(self.region_grid) + 1) ** 2

    @property
    def memory_bytes(self) -> int:
        """What the slide's size costs in memory; strips and mini-batches come on top and do not grow with it."""
        return self.slide_bytes + self.feature_bytes + self.region_bytes

    def facts(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {
            "variant": self.variant.name,
            "size_px": list(self.size_px),
            "padded_px": list(self.padded_px),
            "passes": self.passes,
            "tiles": self.tiles,
            "forwards": self.forwards,
            "region_grid": list(self.region_grid),
            "superpixels": self.superpixels,
            "flop": dict(self.flop),
            "total_flop": self.total_flop,
            "memory_bytes": self.memory_bytes,
        }


def plan(
    size_px: tuple[int, int],
    mpp: float,
    variant: Variant,
    tissue_mask: Mask | None = None,
    *,
    sizes: Sizes | None = None,
    superpixels: int | None = None,
) -> Plan:
    """Count the work on a slide without reading a pixel.

    Parameters
    ----------
    size_px : (int, int)
        Width and height of level 0 in pixels.
    mpp : float
        µm per level-0 pixel.
    variant : Variant
    tissue_mask : ndarray of bool, shape (h, w), optional
        Tissue on an overview of the whole slide; needed by a variant that sees tissue only.
    sizes : Sizes, optional
        Of the networks; by default HIPT's and iStar's.
    superpixels : int, optional
        Superpixels inside spots, which are all that a tissue-only variant predicts. By default those of all patches
        that hold tissue; the other variants predict every one.

    Raises
    ------
    ValueError
        If µm/px is implausible, the slide too small for shifted passes, or a tissue mask missing.
    """
    low, high = MPP_PLAUSIBLE
    if not low <= mpp <= high:
        raise ValueError(f"{mpp:g} µm/px is implausible; it must lie in {low:g} to {high:g}")
    scaled = scaled_size(size_px, mpp)
    padded = (_up(scaled[0], PATCH_PX), _up(scaled[1], PATCH_PX))
    seen = (padded[0] - MARGIN_PX, padded[1] - MARGIN_PX) if variant.shifted else padded
    if min(seen) <= 0:
        raise ValueError(
            f"{size_px[0]}×{size_px[1]} px at {mpp:g} µm/px leave nothing beside the {MARGIN_PX} px for shifts; "
            "use the variant no_shift"
        )
    if variant.tissue_only:
        if tissue_mask is None:
            raise ValueError(f"the variant {variant.name} needs a tissue mask")
        grid = (padded[1] // PATCH_PX, padded[0] // PATCH_PX)
        positions = _tissue_positions(tissue_mask, scaled, grid)
        predicted = (len(positions) - 1) * TOKENS if superpixels is None else superpixels
    else:
        tiles = (-(-seen[1] // TILE_PX), -(-seen[0] // TILE_PX))
        grid = (tiles[0] * TILE_PATCHES, tiles[1] * TILE_PATCHES)
        positions = _tile_positions(tiles, len(variant.shifts))
        predicted = math.prod(padded) // SUPERPIXEL_PX**2
    return Plan(variant, sizes or Sizes(), size_px, scaled, padded, seen, grid, predicted, positions)


def scaled_size(size_px: tuple[int, int], mpp: float) -> tuple[int, int]:
    """Width and height at 0.5 µm/px, in whole pixels."""
    return max(1, round(size_px[0] * mpp / MPP)), max(1, round(size_px[1] * mpp / MPP))


def _up(length: int, step: int) -> int:
    return -(-length // step) * step


def _tile_positions(tiles: tuple[int, int], passes: int) -> Positions:
    """Pass by pass, tile by tile, row by row."""
    shift, tile_y, tile_x, y, x = np.indices((passes, *tiles, TILE_PATCHES, TILE_PATCHES), np.int32).reshape(5, -1)
    return np.stack([shift, tile_y * TILE_PATCHES + y, tile_x * TILE_PATCHES + x], axis=1)


def _tissue_positions(mask: Mask, scaled: tuple[int, int], grid: tuple[int, int]) -> Positions:
    """The white patch, then row by row every patch with a pixel of tissue."""
    rows, columns = grid
    share = cell_tissue(mask, columns * PATCH_PX / scaled[0], rows * PATCH_PX / scaled[1], columns, rows)
    found = np.argwhere(share > 0)
    held = np.concatenate([np.zeros((len(found), 1), np.intp), found], axis=1)
    return np.concatenate([[(0, WHITE, WHITE)], held]).astype(np.int32)


def patch_origin(plan: Plan, position: Any) -> tuple[int, int]:
    """Where a patch begins on the superpixel grid of the padded slide: row, column."""
    y, x = plan.variant.shifts[position[0]]
    return int(position[1]) * GRID + y // SUPERPIXEL_PX, int(position[2]) * GRID + x // SUPERPIXEL_PX
