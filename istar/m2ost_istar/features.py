"""Features of superpixels: gathered pass by pass, averaged, smoothed, and put together window by window."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter

from .geometry import SHIFT_SUPERPIXELS, WHITE, Plan, patch_origin
from .sizes import GRID, PATCH_PX, SUPERPIXEL_PX

REGION_SMOOTHING, TOKEN_SMOOTHING = 16, 4
"""Side of the mean that ViT-4K's and ViT-256's features are smoothed by, in superpixels."""

Features = np.ndarray[Any, np.dtype[np.float32]]
_WHITE_ROW = 0


class FeatureMap:
    """What the networks said about a slide, on the grid of its superpixels.

    Parameters
    ----------
    plan : Plan
        The work; ``plan.feature_bytes`` is what the map takes.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        rows, columns = plan.superpixel_grid
        dim = plan.sizes.patch_dim
        if plan.variant.tissue_only:
            patches = (rows // GRID, columns // GRID)
            self._rows_of = np.full(patches, _WHITE_ROW)
            held = plan.positions[1:]
            self._rows_of[held[:, 1], held[:, 2]] = np.arange(1, len(plan.positions))
            shape: tuple[int, ...] = (len(plan.positions), GRID, GRID)
        else:
            shape = (rows, columns)
        self._tokens = np.zeros((*shape, dim), np.float32)
        self._colours = np.zeros((*shape, 3), np.float32)
        self._cls = np.zeros((plan.passes, *plan.region_grid, dim), np.float32)
        self._region = np.zeros(
            (rows // SHIFT_SUPERPIXELS, columns // SHIFT_SUPERPIXELS, plan.sizes.region_dim), np.float32
        )

    def add_patches(self, first: int, pixels: Any, cls: Features, tokens: Features) -> None:
        """Take in the features of consecutive patches of the plan.

        Parameters
        ----------
        first : int
            Index of the first in ``plan.positions``.
        pixels : ndarray of uint8, shape (n, 256, 256, 3)
        cls : ndarray of float32, shape (n, d)
        tokens : ndarray of float32, shape (n, 256, d)
        """
        plan = self._plan
        inside = plan.pass_px[1] // PATCH_PX, plan.pass_px[0] // PATCH_PX
        for index, (image, of_patch, of_tokens) in enumerate(zip(pixels, cls, tokens, strict=True), first):
            shift, row, column = plan.positions[index]
            if row == WHITE:
                self._cls[:] = of_patch  # the first patch of its plan: the others replace what is theirs
            else:
                self._cls[shift, row, column] = of_patch
            if plan.variant.tissue_only:
                self._tokens[index] = of_tokens.reshape(GRID, GRID, -1)
                self._colours[index] = mean_colours(image)
            elif row < inside[0] and column < inside[1]:  # the others fill up a tile and show nothing of the slide
                y, x = patch_origin(plan, (shift, row, column))
                self._tokens[y : y + GRID, x : x + GRID] += of_tokens.reshape(GRID, GRID, -1)
                if not plan.variant.shifted:
                    self.add_colours(y, x, image)

    def add_colours(self, row: int, column: int, pixels: Any) -> None:
        """Take in the colours of the slide from a superpixel on; sides in pixels are multiples of 16."""
        colours = mean_colours(pixels)
        self._colours[row : row + colours.shape[0], column : column + colours.shape[1]] = colours

    def cls_grid(self, shift: int) -> Features:
        """The grid of patch features of one pass, shape (h, w, d): what ViT-4K sees."""
        grid: Features = self._cls[shift]
        return grid

    def add_region(self, shift: int, region: Features) -> None:
        """Take in what ViT-4K said of one pass, shape (h, w, d')."""
        plan, cell_px = self._plan, SHIFT_SUPERPIXELS * SUPERPIXEL_PX
        y, x = (origin // cell_px for origin in plan.variant.shifts[shift])
        height, width = plan.pass_px[1] // cell_px, plan.pass_px[0] // cell_px
        times = PATCH_PX // cell_px
        spread = region.repeat(times, axis=0).repeat(times, axis=1)
        self._region[y : y + height, x : x + width] += spread[:height, :width]

    def finish(self) -> None:
        """Turn the sums over the passes into means. What no pass saw takes the value of what lies next to it."""
        if not self._plan.variant.shifted:
            return
        _mean_over_passes(self._tokens, self._plan, SUPERPIXEL_PX)
        _mean_over_passes(self._region, self._plan, SHIFT_SUPERPIXELS * SUPERPIXEL_PX)

    def holds_tissue(self, rows: Any, columns: Any) -> Any:
        """Which superpixels lie in patches that hold tissue, for a tissue-only variant: bool (rows, columns)."""
        return self._rows_of[rows[:, None] // GRID, columns // GRID] != _WHITE_ROW

    def window(self, top: int, left: int, height: int, width: int) -> Features:
        """Features of a rectangle of superpixels.

        Parameters
        ----------
        top, left, height, width : int
            The rectangle on the superpixel grid.

        Returns
        -------
        ndarray of float32, shape (height, width, d' + d + 3)
            ViT-4K's features, smoothed over 16 superpixels; ViT-256's, smoothed over 4; the mean colour in [0, 1].
        """

        def smooth(read: Any, size: int) -> Features:
            grid = self._plan.superpixel_grid
            rows, columns = _reflected(top, height, size, grid[0]), _reflected(left, width, size, grid[1])
            smoothed = uniform_filter(read(rows, columns), size, axes=(0, 1))
            inner: Features = smoothed[size // 2 : size // 2 + height, size // 2 : size // 2 + width]
            return inner

        rows, columns = np.arange(top, top + height), np.arange(left, left + width)
        return np.concatenate(
            [
                smooth(self._read_region, REGION_SMOOTHING),
                smooth(lambda r, c: self._read(self._tokens, r, c), TOKEN_SMOOTHING),
                self._read(self._colours, rows, columns),
            ],
            axis=2,
        )

    def _read_region(self, rows: Any, columns: Any) -> Any:
        return self._region[rows[:, None] // SHIFT_SUPERPIXELS, columns // SHIFT_SUPERPIXELS]

    def _read(self, values: Features, rows: Any, columns: Any) -> Any:
        if not self._plan.variant.tissue_only:
            return values[rows[:, None], columns]
        patches = self._rows_of[rows[:, None] // GRID, columns // GRID]
        return values[patches, rows[:, None] % GRID, columns % GRID]


def mean_colours(pixels: Any) -> Features:
    """Mean colour of every superpixel in [0, 1]: uint8 (h, w, 3) → float32 (h / 16, w / 16, 3)."""
    height, width = pixels.shape[0] // SUPERPIXEL_PX, pixels.shape[1] // SUPERPIXEL_PX
    squares = pixels.reshape(height, SUPERPIXEL_PX, width, SUPERPIXEL_PX, 3)
    sums = squares.sum(axis=(1, 3), dtype=np.int64)
    means: Features = (sums / (255 * SUPERPIXEL_PX**2)).astype(np.float32)
    return means


def _reflected(first: int, count: int, size: int, length: int) -> Any:
    """Indices that a mean of ``size`` around each of ``count`` places looks at; the border reflects itself."""
    index = np.arange(first - size // 2, first + count + (size - 1) // 2) % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)


def _mean_over_passes(sums: Features, plan: Plan, cell_px: int) -> None:
    """Divide in place by how many passes saw each cell; the last ones, which none did, repeat their neighbours."""
    seen = []
    for axis, length_px in enumerate((plan.pass_px[1], plan.pass_px[0])):
        cells = np.arange(sums.shape[axis]) * cell_px
        seen.append(np.sum([(cells >= s) & (cells < s + length_px) for s in plan.variant.starts], axis=0))
    down, across = seen
    last_y, last_x = np.flatnonzero(down)[-1], np.flatnonzero(across)[-1]
    for y in range(last_y + 1):
        sums[y, : last_x + 1] /= np.float32(down[y]) * across[: last_x + 1, None].astype(np.float32)
    sums[: last_y + 1, last_x + 1 :] = sums[: last_y + 1, last_x : last_x + 1]
    sums[last_y + 1 :] = sums[last_y]
