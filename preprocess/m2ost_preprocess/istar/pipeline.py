"""The baseline from a slide to the expression of its spots, on whatever runs the networks.

Memory: ``Plan.memory_bytes``, and what does not grow with the slide: one mini-batch (192 KiB of pixels and 394 KiB of
features a patch) for each that is in flight, one strip of 256×4096 px as float32 (12 MiB, a few times over), and one
block of 64×64 superpixels with its predictions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from scipy.sparse import csr_array

from ..contract import RowStatus, as_centers
from ..errors import SpotError
from ..readers.base import Pixels
from ..tissue import MASK_PX, tissue_mask
from .disks import Disks, disks
from .features import FeatureMap, Features
from .geometry import WHITE, Plan, Variant, plan
from .scaled import STRIP_PX, WHITE_LEVEL, PixelSource, ScaledSlide
from .sizes import PATCH_PX, SUPERPIXEL_PX, Sizes
from .stopwatch import OnStage, Stopwatch

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


class OverviewSource(PixelSource, Protocol):
    """A slide with an overview, which tissue is found on."""

    def thumbnail(self, max_px: int) -> Pixels:
        """The whole slide, made small: uint8 (h, w, 3)."""
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


def plan_slide(
    reader: OverviewSource,
    centers: Any,
    *,
    mpp: float,
    spot_diameter_um: float,
    variant: Variant,
    sizes: Sizes,
    watch: Stopwatch,
) -> tuple[Plan, Disks]:
    """What a slide and its spots will cost, and the superpixels of every spot; reads an overview at most.

    Raises
    ------
    SlideError, SpotError, ValueError
        As :func:`predict_slide`.
    """
    positions = as_centers(centers)
    if not len(positions):
        raise SpotError("no spots were given; give the centre of at least one")
    mask = None
    if variant.tissue_only:
        with watch("read"):
            mask = tissue_mask(reader.thumbnail(MASK_PX))
    work = plan(reader.size, mpp, variant, mask, sizes=sizes)
    spots = disks(reader.size, mpp, work.superpixel_grid, positions, spot_diameter_um)
    return (replace(work, superpixels=len(spots.distinct)) if variant.tissue_only else work), spots


def predict_slide(
    reader: OverviewSource,
    centers: Any,
    *,
    mpp: float,
    spot_diameter_um: float,
    networks: Networks,
    variant: Variant,
    batch_rows: int,
    in_flight: int = 1,
    on_stage: OnStage | None = None,
) -> tuple[Features, np.ndarray[Any, np.dtype[np.int32]]]:
    """Predict the expression of a slide's spots as iStar does.

    The original rebuilds its networks for every shift; here they are built once, and that is not charged to it.

    Parameters
    ----------
    reader : SlideReader or like it
        The slide.
    centers : array_like, shape (n, 2)
        x, y in level-0 pixels.
    mpp : float
        µm per level-0 pixel.
    spot_diameter_um : float
        Diameter of a spot in µm.
    networks : Networks
    variant : Variant
        One of ``VARIANTS``.
    batch_rows : int
        Patches a mini-batch of ViT-256; 256 in iStar.
    in_flight : int
        Mini-batches given to ``networks.patch`` at once, from as many threads.
    on_stage : callable, optional
        Receives (stage, seconds) whenever a piece of one of ``STAGES`` ends.

    Returns
    -------
    expression : ndarray of float32, shape (n, G)
        Mean over the superpixels of each spot's disk; NaN where ``status`` is not OK.
    status : ndarray of int32, shape (n,)
        A ``RowStatus`` a spot.

    Raises
    ------
    SlideError
        If the slide cannot be decoded: a spot's value depends on all of it.
    SpotError
        If there are no spots, or the diameter is not a plausible number of µm.
    ValueError
        If µm/px or a centre is implausible, or the slide too small for the variant.
    """
    watch = Stopwatch(on_stage=on_stage)
    work, spots = plan_slide(
        reader,
        centers,
        mpp=mpp,
        spot_diameter_um=spot_diameter_um,
        variant=variant,
        sizes=networks.sizes,
        watch=watch,
    )
    run = SlideRun(reader, work, networks, batch_rows=batch_rows, watch=watch, in_flight=in_flight)
    return run_slide(run, spots, watch)


def run_slide(run: SlideRun, spots: Disks, watch: Stopwatch) -> tuple[Features, np.ndarray[Any, np.dtype[np.int32]]]:
    """All stages of a prepared run; see :func:`predict_slide`."""
    run.prepare()
    run.extract(run.batches)
    run.regions(range(run.work.passes))
    run.finish_features()
    means = SpotMeans(spots, run.work.sizes.n_genes)
    for block in run.blocks(spots):
        superpixels, expression = run.predict(block, spots)
        with watch("spots"):
            means.add(superpixels, expression)
    return means.expression(), spots.statuses


class SpotMeans:
    """Means over the superpixels of spots, which come in blocks.

    Parameters
    ----------
    spots : Disks
    n_genes : int
    """

    def __init__(self, spots: Disks, n_genes: int) -> None:
        self._superpixels, self._spots = spots.superpixels, spots.spots
        self._counts, self._statuses = spots.counts, spots.statuses
        self._sums = np.zeros((len(spots.statuses), n_genes))

    def add(self, superpixels: Any, expression: Features) -> None:
        """Take in the expression of some superpixels, in ascending order; every one comes once."""
        place = np.searchsorted(superpixels, self._superpixels)
        place[place == len(superpixels)] = 0
        here = np.flatnonzero(superpixels[place] == self._superpixels)
        spots, row = np.unique(self._spots[here], return_inverse=True)
        members = csr_array((np.ones(len(here)), (row, place[here])), shape=(len(spots), len(superpixels)))
        self._sums[spots] += members @ expression

    def expression(self) -> Features:
        """The means, float32 (n, G); NaN for spots without a value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (self._sums / self._counts[:, None]).astype(np.float32)
        means[self._statuses != RowStatus.OK] = np.nan
        return means
