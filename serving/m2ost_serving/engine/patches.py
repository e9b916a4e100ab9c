"""The distinct patches of a batch of views: what views of neighbouring spots have in common is found by its bytes.

A patch is embedded before its position is added, so that equal patches have equal embeddings wherever they lie. Looked
for are equal bytes, not places on the slide: that holds for any layout of spots, for glass and for what is off the
slide; and where the kernel of a resize is cut off by the edge of a window, bytes differ and nothing is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Index = np.ndarray[Any, np.dtype[np.int32]]

_SEED = 0x6D326F7374


@dataclass(frozen=True)
class PatchGeometry:
    """How an M2OST cuts its views.

    Parameters
    ----------
    image_px : int
        Side of every view.
    patch_px : int
        Side of the patches of whole views; halved for each inner centre.
    n_levels : int
        Number of views.
    """

    image_px: int
    patch_px: int
    n_levels: int

    @property
    def patchings(self) -> list[tuple[int, int]]:
        """(level, j) of every patching, in the order of the tokens: within a level the finest first."""
        return [(level, j) for level in range(self.n_levels) for j in range(level, -1, -1)]

    @property
    def patch_names(self) -> list[str]:
        """Names of the distinct patches of every patching."""
        return [f"PATCHES{level}{j}" for level, j in self.patchings]

    @property
    def index_names(self) -> list[str]:
        """Names of the indices of every level."""
        return [f"INDEX{level}" for level in range(self.n_levels)]

    @property
    def tokens_per_patching(self) -> int:
        """Patches of one patching of one view."""
        return (self.image_px // self.patch_px) ** 2

    def tokens(self, level: int) -> int:
        """Tokens of a level, cls included."""
        return 1 + (level + 1) * self.tokens_per_patching

    def patch_bytes(self, j: int) -> int:
        """Bytes of a patch of the ``j``-th patching."""
        return 3 * (self.patch_px >> j) ** 2

    def cut(self, views: Pixels, j: int) -> Pixels:
        """Flatten the ``j``-th patching of views.

        Parameters
        ----------
        views : ndarray of uint8, shape (n, image_px, image_px, 3)
        j : int
            0 for the whole view; j for the centre of side ``image_px / 2^j``.

        Returns
        -------
        ndarray of uint8, shape (n · tokens, 3·(patch_px/2^j)²)
            Each patch flattened row, column, channel; a copy.
        """
        side, patch = self.image_px >> j, self.patch_px >> j
        start, grid = (self.image_px - side) // 2, side // patch
        centre = views[:, start : start + side, start : start + side]
        split = centre.reshape(-1, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        return split.reshape(-1, self.patch_bytes(j))


@dataclass(frozen=True)
class SharedPatches:
    """A batch, each patch once.

    Parameters
    ----------
    patches : list of ndarray of uint8, each shape (t, bytes)
        The distinct patches of every patching.
    indices : list of ndarray of int32, each shape (n, tokens of the level)
        For every level, where its tokens are among the distinct patches of its patchings, joined in order; 0 is the cls
        token, and patches count from 1.
    """

    patches: list[Pixels]
    indices: list[Index]

    def to_feed(self, geometry: PatchGeometry) -> dict[str, Any]:
        """The inputs of the graph, by name."""
        names = [*geometry.patch_names, *geometry.index_names]
        return dict(zip(names, [*self.patches, *self.indices], strict=True))


def share(views: Sequence[Pixels], geometry: PatchGeometry) -> SharedPatches:
    """Find the distinct patches of a batch.

    Parameters
    ----------
    views : sequence of ndarray of uint8, each shape (n, image_px, image_px, 3)
        Fine to coarse.
    geometry : PatchGeometry

    Returns
    -------
    SharedPatches
    """
    patches: list[Pixels] = []
    indices: list[Index] = []
    for level, view in enumerate(views):
        columns, first = [np.zeros((len(view), 1), np.int32)], 1
        for j in range(level, -1, -1):
            distinct, index = find_distinct(geometry.cut(view, j))
            patches.append(distinct)
            columns.append((index + first).reshape(len(view), -1))
            first += len(distinct)
        indices.append(np.concatenate(columns, axis=1))
    return SharedPatches(patches, indices)


def find_distinct(rows: Pixels) -> tuple[Pixels, Index]:
    """The distinct rows of a matrix.

    Rows are told apart by a 64-bit sum first, and then by all their bytes: equal rows are surely equal. Rows whose sums
    are equal by chance, one pair in 2⁶⁴, are kept apart.

    Parameters
    ----------
    rows : ndarray of uint8, shape (n, bytes)
        C-contiguous; ``bytes`` a multiple of 4.

    Returns
    -------
    distinct : ndarray of uint8, shape (t, bytes)
    index : ndarray of int32, shape (n,)
        ``distinct[index]`` is ``rows``.
    """
    words = rows.view(np.uint64 if rows.shape[1] % 8 == 0 else np.uint32)
    _, first, index = np.unique(row_sums(words), return_index=True, return_inverse=True)
    index = index.reshape(-1).astype(np.int32)
    strangers = np.flatnonzero((words != words[first[index]]).any(axis=1))
    index[strangers] = len(first) + np.arange(len(strangers), dtype=np.int32)
    return rows[np.concatenate([first, strangers])], index


def row_sums(words: Any) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A 64-bit sum of every row of unsigned integers, each times an odd number of its column's own: shape (n,)."""
    weights = np.random.default_rng(_SEED).integers(0, 1 << 63, words.shape[1], np.uint64) * 2 + 1
    sums: np.ndarray[Any, np.dtype[np.uint64]] = np.einsum("ij,j->i", words, weights)
    return sums
