"""iStar from a slide to the expression of its spots, on whatever runs the networks.

Memory: ``Plan.memory_bytes``, and what does not grow with the slide: one mini-batch (192 KiB of pixels and 394 KiB of
features a patch) for each that is in flight, one strip of 256×4096 px as float32 (12 MiB, a few times over), and one
block of 64×64 superpixels with its predictions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from m2ost_contract import as_centers
from m2ost_preprocess.errors import SpotError
from m2ost_preprocess.readers.base import Pixels
from m2ost_preprocess.slides.tissue import MASK_PX, tissue_mask

from .disks import Disks, SpotMeans, disks
from .features import Features
from .geometry import Plan, Variant, plan
from .run import Networks, SlideRun
from .scaled import PixelSource
from .sizes import Sizes
from .stopwatch import OnStage, Stopwatch

__all__ = ["Networks", "OverviewSource", "plan_slide", "predict_slide", "run_slide"]


class OverviewSource(PixelSource, Protocol):
    """A slide with an overview, which tissue is found on."""

    def thumbnail(self, max_px: int) -> Pixels:
        """The whole slide, made small: uint8 (h, w, 3)."""
        ...


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
        Receives (stage, seconds) whenever a piece of one of ``run.STAGES`` ends.

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
