"""How long iStar takes on a slide too large to wait for: a sample of its work, scaled by exact counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from m2ost_preprocess.slides.tissue import MASK_PX, tissue_mask

from .disks import SpotMeans
from .geometry import Variant, plan
from .pipeline import OverviewSource, plan_slide
from .run import Networks, SlideRun
from .stopwatch import Stopwatch

READING = ("overview", "read", "read whole slide")
"""Stages that read the slide; rescaling it is work of iStar's own."""

T = TypeVar("T")


@dataclass(frozen=True)
class StageTiming:
    """One stage of a timed run.

    Parameters
    ----------
    stage : str
        What was done; those in ``READING`` read the slide.
    unit : str
        What is counted.
    sampled, total : int
        How many of them were run, and how many the slide has.
    measured_s, scaled_s : float
        Seconds that they took, and that times ``total / sampled``.
    flop, scaled_flop : float
        Operations of the networks that were done, and that the whole takes.
    """

    stage: str
    unit: str
    sampled: int
    total: int
    measured_s: float
    scaled_s: float
    flop: float = 0.0
    scaled_flop: float = 0.0


_FIGURES = ("measured_s", "scaled_s", "scaled_s_without_reading", "flop", "scaled_flop", "gflop_per_s")


@dataclass(frozen=True)
class VariantTiming:
    """What a variant costs on one slide.

    Parameters
    ----------
    variant : str
    batch_rows : int
        Patches a mini-batch.
    plan : dict
        All counts of the slide.
    stages : tuple of StageTiming
    """

    variant: str
    batch_rows: int
    plan: dict[str, Any]
    stages: tuple[StageTiming, ...]

    @property
    def sampled(self) -> bool:
        """Whether any stage was run on a sample only."""
        return any(stage.sampled < stage.total for stage in self.stages)

    @property
    def measured_s(self) -> float:
        """Seconds that the sample took."""
        return sum(stage.measured_s for stage in self.stages)

    @property
    def scaled_s(self) -> float:
        """Seconds that the whole slide takes."""
        return sum(stage.scaled_s for stage in self.stages)

    @property
    def scaled_s_without_reading(self) -> float:
        """The same but for reading the slide."""
        return sum(stage.scaled_s for stage in self.stages if stage.stage not in READING)

    @property
    def flop(self) -> float:
        """Operations of the networks in the sample."""
        return sum(stage.flop for stage in self.stages)

    @property
    def scaled_flop(self) -> float:
        """Operations of the networks on the whole slide."""
        return sum(stage.scaled_flop for stage in self.stages)

    @property
    def gflop_per_s(self) -> float:
        """10⁹ operations a second that the networks reached while they ran."""
        spent = sum(stage.measured_s for stage in self.stages if stage.flop)
        return self.flop / spent / 1e9 if spent else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For a report; says whether it was scaled."""
        return {
            **asdict(self),
            "sampled": self.sampled,
            **{name: getattr(self, name) for name in _FIGURES},
        }


def time_variant(
    reader: OverviewSource,
    *,
    mpp: float,
    networks: Networks,
    variant: Variant,
    batch_rows: int,
    sample_batches: int | None,
    clock: Callable[[], float] = time.perf_counter,
    centers: Any = None,
    spot_diameter_um: float | None = None,
) -> VariantTiming:
    """Time a variant on a slide, on all of its work or on an evenly spread sample.

    ViT-256 runs on ``sample_batches`` whole mini-batches, the head on as many blocks of superpixels, ViT-4K on one
    pass. A variant with several passes rescales the whole slide, whatever the sample. What was not sampled is zero in
    the features, which costs the later stages as much as any other value.

    Parameters
    ----------
    reader : SlideReader or like it
    mpp : float
        µm per level-0 pixel.
    networks : Networks
    variant : Variant
    batch_rows : int
        Patches a mini-batch.
    sample_batches : int or None
        Mini-batches to run; None runs everything.
    clock : callable
        Seconds, from any origin.
    centers : array_like, shape (n, 2), optional
        x, y of spots in level-0 pixels: their means are a stage then, and a tissue-only variant predicts their
        superpixels alone, not those of all tissue.
    spot_diameter_um : float, optional
        Diameter of a spot in µm; needed with ``centers``.

    Raises
    ------
    SlideError, SpotError, ValueError
        As :func:`~m2ost_istar.pipeline.predict_slide`.
    """
    if (centers is None) != (spot_diameter_um is None):
        raise ValueError("spots need both, centers and spot_diameter_um")
    if sample_batches is not None and sample_batches < 1:
        raise ValueError(f"sample_batches must be positive, not {sample_batches}")
    watch, sizes, spots = Stopwatch(clock), networks.sizes, None
    if centers is None or spot_diameter_um is None:
        mask = None
        if variant.tissue_only:
            with watch("read"):
                mask = tissue_mask(reader.thumbnail(MASK_PX))
        work = plan(reader.size, mpp, variant, mask, sizes=sizes)
    else:
        work, spots = plan_slide(
            reader, centers, mpp=mpp, spot_diameter_um=spot_diameter_um, variant=variant, sizes=sizes, watch=watch
        )
    planned = watch.lap()
    run = SlideRun(reader, work, networks, batch_rows=batch_rows, watch=watch)
    run.prepare()
    prepared = watch.lap()
    whole = [batch for batch in run.batches if batch[1] - batch[0] == batch_rows] or run.batches
    batches = run.batches if sample_batches is None else _spread(whole, sample_batches)
    run.extract(batches)
    extracted = watch.lap()
    passes = _spread(range(work.passes), None if sample_batches is None else 1)
    run.regions(passes)
    described = watch.lap()
    run.finish_features()
    averaged = watch.lap()
    means = None if spots is None else SpotMeans(spots, sizes.n_genes)
    done = 0
    for block in _spread(run.blocks(spots), sample_batches):
        superpixels, expression = run.predict(block, spots)
        done += len(superpixels)
        if means is not None:
            with watch("spots"):
                means.add(superpixels, expression)
    predicted = watch.lap()

    slide = ("slides", 1, 1)
    patches = ("patches", sum(last - first for first, last in batches), work.forwards)
    region = ("passes", len(passes), work.passes)
    superpixel = ("superpixels", done, work.superpixels)
    stages = (
        _stage("overview", slide, planned["read"]),
        *(_stage(f"{name} whole slide", slide, prepared[name]) for name in ("read", "rescale", "features")),
        *(_stage(name, patches, extracted[name]) for name in ("read", "rescale")),
        _stage("patch", patches, extracted["patch"], sizes.patch_flop),
        _stage("patch features", patches, extracted["features"]),
        _stage("region", region, described["region"], work.flop["region"] / work.passes),
        _stage("region features", region, described["features"]),
        _stage("mean of passes", slide, averaged["features"]),
        _stage("superpixel features", superpixel, predicted["features"]),
        _stage("head", superpixel, predicted["head"], sizes.head_flop),
        _stage("spots", superpixel, predicted["spots"]),
    )
    return VariantTiming(variant.name, batch_rows, work.facts(), stages)


def _stage(stage: str, counted: tuple[str, int, int], seconds: float, flop_each: float = 0.0) -> StageTiming:
    unit, sampled, total = counted
    factor = total / sampled if sampled else 0.0
    return StageTiming(stage, unit, sampled, total, seconds, seconds * factor, sampled * flop_each, total * flop_each)


def _spread(items: Sequence[T], count: int | None) -> list[T]:
    """``count`` of them, evenly spread from the first to the last; all where that is None."""
    if count is None or count >= len(items):
        return list(items)
    # The middle of each of ``count`` equal stretches: one alone is neither the first nor the last.
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]
