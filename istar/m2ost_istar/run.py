"""One slide on its way through the networks, stage by stage."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from m2ost_preprocess.readers.base import Pixels

from .disks import Disks
from .features import FeatureMap, Features
from .geometry import WHITE, Plan
from .scaled import STRIP_PX, WHITE_LEVEL, PixelSource, ScaledSlide
from .sizes import PATCH_PX, SUPERPIXEL_PX, Sizes
from .stopwatch import Stopwatch

BLOCK = 64
"""Side of the squares of superpixels that go through the head together."""

STAGES = ("read", "rescale", "patch", "region", "features", "head", "spots")


class Networks(Protocol):
    """The three networks, on any runtime."""

    @property
    def sizes(self) -> Sizes:
        """Their sizes."""
        ...

    def patch(self, pixels: Pixels) -> tuple[Features, Features]:
        """ViT-256: uint8 (n, 256, 256, 3) → cls float32 (n, 384) and tokens float32 (n, 256, 384)."""
        ...

    def region(self, cls_grid: Features) -> Features:
        """ViT-4K: float32 (h, w, 384) → float32 (h, w, 192)."""
        ...

    def head(self, features: Features) -> Features:
        """Median of the MLPs: float32 (n, 579) → float32 (n, G)."""
        ...


Batch = tuple[int, int]
"""First patch of a mini-batch in ``plan.positions``, and the one after its last."""

Block = tuple[int, int, int, int]
"""Top, left, height and width of a rectangle of superpixels."""


class SlideRun:
    """One slide on its way through the stages; they are called in the order in which they stand here.

    Parameters
    ----------
    source : PixelSource
    work : Plan
    networks : Networks
    batch_rows : int
        Patches a mini-batch.
    watch : Stopwatch
        Told of every stage of ``STAGES``.
    in_flight : int
        Mini-batches that ``networks.patch`` is given at once. With 1 it is called from this thread alone; with more,
        the stage ``patch`` is the time that is spent waiting for it.
    """

    def __init__(
        self,
        source: PixelSource,
        work: Plan,
        networks: Networks,
        *,
        batch_rows: int,
        watch: Stopwatch,
        in_flight: int = 1,
    ) -> None:
        if batch_rows < 1 or in_flight < 1:
            raise ValueError(f"batch_rows and in_flight must be positive, not {batch_rows} and {in_flight}")
        self.work, self.features = work, FeatureMap(work)
        self._networks, self._watch, self._in_flight = networks, watch, in_flight
        self._slide = ScaledSlide(source, work, watch)
        self.batches: list[Batch] = [
            (first, min(first + batch_rows, work.forwards)) for first in range(0, work.forwards, batch_rows)
        ]

    def prepare(self) -> None:
        """Rescale the slide as a whole, where the variant looks at its pixels many times."""
        if not self.work.variant.shifted:
            return
        self._slide.hold()
        with self._watch("features"):
            for top in range(0, self.work.padded_px[1], PATCH_PX):
                strip = self._slide.read(0, top, self.work.padded_px[0], PATCH_PX)
                self.features.add_colours(top // SUPERPIXEL_PX, 0, strip)

    def extract(self, batches: Sequence[Batch]) -> None:
        """ViT-256 on some of ``self.batches``.

        Raises
        ------
        SlideError
            If pixels cannot be decoded: every superpixel depends on every patch, so nothing of the slide has a value.
        """
        if self._in_flight == 1:
            for batch in batches:
                pixels = self._pixels(batch)
                with self._watch("patch"):
                    cls, tokens = self._networks.patch(pixels)
                self._take(batch, pixels, cls, tokens)
            return
        with ThreadPoolExecutor(self._in_flight) as pool:
            waiting: deque[tuple[Batch, Pixels, Future[Any]]] = deque()
            for batch in batches:
                pixels = self._pixels(batch)
                waiting.append((batch, pixels, pool.submit(self._networks.patch, pixels)))
                if len(waiting) >= self._in_flight:
                    self._collect(*waiting.popleft())
            while waiting:
                self._collect(*waiting.popleft())

    def _collect(self, batch: Batch, pixels: Pixels, answer: Future[Any]) -> None:
        with self._watch("patch"):
            cls, tokens = answer.result()
        self._take(batch, pixels, cls, tokens)

    def _take(self, batch: Batch, pixels: Pixels, cls: Features, tokens: Features) -> None:
        with self._watch("features"):
            self.features.add_patches(batch[0], pixels, cls, tokens)

    def regions(self, passes: Sequence[int]) -> None:
        """ViT-4K on some of the passes."""
        for shift in passes:
            with self._watch("region"):
                region = self._networks.region(self.features.cls_grid(shift))
            with self._watch("features"):
                self.features.add_region(shift, region)

    def finish_features(self) -> None:
        """Average over the passes."""
        with self._watch("features"):
            self.features.finish()

    def blocks(self, wanted: Disks | None = None) -> list[Block]:
        """Squares of superpixels that go through the head.

        Parameters
        ----------
        wanted : Disks, optional
            Spots whose superpixels alone a tissue-only variant predicts; without them those of all tissue.
        """
        rows, columns = self.work.superpixel_grid
        squares = [
            (top, left, min(BLOCK, rows - top), min(BLOCK, columns - left))
            for top in range(0, rows, BLOCK)
            for left in range(0, columns, BLOCK)
        ]
        return [square for square in squares if self.chosen(square, wanted).any()]

    def chosen(self, block: Block, wanted: Disks | None = None) -> Any:
        """Which superpixels of a block go through the head: bool, shape (height, width)."""
        top, left, height, width = block
        if not self.work.variant.tissue_only:
            return np.ones((height, width), bool)
        rows, columns = np.arange(top, top + height), np.arange(left, left + width)
        if wanted is None:
            return self.features.holds_tissue(rows, columns)
        return np.isin(rows[:, None] * self.work.superpixel_grid[1] + columns, wanted.distinct)

    def predict(self, block: Block, wanted: Disks | None = None) -> tuple[Any, Features]:
        """Predict the chosen superpixels of a block.

        Returns
        -------
        superpixels : ndarray of int64, shape (n,)
            Which they are: row · columns of the grid + column, ascending.
        expression : ndarray of float32, shape (n, G)
        """
        mask = self.chosen(block, wanted)
        row, column = np.nonzero(mask)
        with self._watch("features"):
            features = np.ascontiguousarray(self.features.window(*block)[mask])
        with self._watch("head"):
            expression = self._networks.head(features)
        return (row + block[0]) * self.work.superpixel_grid[1] + column + block[1], expression

    def _pixels(self, batch: Batch) -> Pixels:
        """Pixels of a mini-batch, read a strip at a time."""
        first, last = batch
        out = np.full((last - first, PATCH_PX, PATCH_PX, 3), WHITE_LEVEL, np.uint8)
        for start, stop in _strips(self.work.positions[first:last]):
            shift, row, column = (int(v) for v in self.work.positions[first + start])
            if row == WHITE:
                continue
            y, x = self.work.variant.shifts[shift]
            width, height = self.work.pass_px
            # Beyond the pass its last row and column go on: it is padded with them to whole tiles.
            rows = np.minimum(np.arange(row * PATCH_PX, (row + 1) * PATCH_PX), height - 1)
            columns = np.minimum(np.arange(column * PATCH_PX, (column + stop - start) * PATCH_PX), width - 1)
            strip = self._slide.read(
                x + int(columns[0]),
                y + int(rows[0]),
                int(columns[-1] - columns[0]) + 1,
                int(rows[-1] - rows[0]) + 1,
            )
            if strip.shape[:2] != (len(rows), len(columns)):
                strip = strip[(rows - rows[0])[:, None], columns - columns[0]]
            out[start:stop] = strip.reshape(PATCH_PX, stop - start, PATCH_PX, 3).swapaxes(0, 1)
        return out


def _strips(positions: Any) -> Iterator[tuple[int, int]]:
    """Runs of patches that lie side by side, at most ``STRIP_PX`` long."""
    start = 0
    for index in range(1, len(positions) + 1):
        if (
            index == len(positions)
            or index - start == STRIP_PX // PATCH_PX
            or not np.array_equal(positions[index] - positions[index - 1], (0, 0, 1))
            or positions[start][1] == WHITE
        ):
            yield start, index
            start = index
