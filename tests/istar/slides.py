"""Slides in memory, and networks that can be computed by hand."""

from __future__ import annotations

import numpy as np
from m2ost_istar.sizes import Sizes


class ArraySlide:
    """Pixels behind the face that the pipeline needs."""

    def __init__(self, pixels):
        self.pixels, self.size = pixels, (pixels.shape[1], pixels.shape[0])
        self.reads = []

    def read(self, left, top, width, height):
        assert 0 <= left < left + width <= self.size[0]
        assert 0 <= top < top + height <= self.size[1]
        self.reads.append((left, top, width, height))
        return self.pixels[top : top + height, left : left + width]

    def thumbnail(self, max_px):
        step = -(-max(self.size) // max_px)
        return self.pixels[::step, ::step]


class Colours:
    """Networks without weights whose features depend on every pixel, and on the whole grid where the real ones' do."""

    sizes = Sizes(
        n_genes=2, patch_dim=4, patch_heads=1, region_dim=2, region_heads=1, head_dim=1, head_layers=1, members=1
    )

    def patch(self, pixels):
        squares = pixels.reshape(len(pixels), 16, 16, 16, 16, 3)
        colours = squares.mean(axis=(2, 4), dtype=np.float64).reshape(len(pixels), 256, 3) / 255
        first = squares[:, :, 0, :, 0, :1].reshape(len(pixels), 256, 1) / 255
        tokens = np.concatenate([colours, first], axis=2) + np.arange(256)[:, None] / 1000
        return tokens.mean(axis=1).astype(np.float32), tokens.astype(np.float32)

    def region(self, cls_grid):
        own = cls_grid.sum(axis=2)
        return np.stack([own + cls_grid.mean(), own * np.arange(own.shape[1])], axis=2).astype(np.float32)

    def head(self, features):
        mix = np.linspace(-1, 1, 2 * features.shape[1], dtype=np.float64).reshape(-1, 2)
        return np.square(features @ mix).astype(np.float32)
