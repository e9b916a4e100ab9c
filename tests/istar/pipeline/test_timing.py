"""A sample of the work, scaled, is what the whole takes: on a clock that counts operations instead of time."""

import pytest
from m2ost_istar.geometry import VARIANTS
from m2ost_istar.timing import time_variant
from m2ost_preprocess.readers import open_slide

from ..slides import Colours

pytestmark = pytest.mark.usefixtures("heavy")

CENTERS = [(800, 900), (1500, 2000), (30, 2900), (2219, 0)]


class Counting(Colours):
    """Every call moves the clock by its operations, counted from the shapes that it was given."""

    def __init__(self):
        self.now = 0.0

    def patch(self, pixels):
        self.now += len(pixels) * self.sizes.patch_flop
        return super().patch(pixels)

    def region(self, cls_grid):
        self.now += self.sizes.region_flop(cls_grid.shape[0] * cls_grid.shape[1])
        return super().region(cls_grid)

    def head(self, features):
        self.now += len(features) * self.sizes.head_flop
        return super().head(features)


def timed(svs, variant, sample, **options):
    networks = Counting()
    return time_variant(
        open_slide(svs),
        mpp=0.499,
        networks=networks,
        variant=VARIANTS[variant],
        batch_rows=20,
        sample_batches=sample,
        clock=lambda: networks.now,
        **options,
    )


@pytest.mark.parametrize("spots", [{}, {"centers": CENTERS, "spot_diameter_um": 100}], ids=["all", "spots"])
@pytest.mark.parametrize("variant", ["no_shift", "tissue"])
def test_a_scaled_sample_is_within_five_percent_of_the_whole(svs, variant, spots):
    whole, sample = timed(svs, variant, None, **spots), timed(svs, variant, 2, **spots)
    assert not whole.sampled
    assert sample.sampled
    assert whole.measured_s == whole.scaled_s == whole.flop == whole.plan["total_flop"]
    assert sample.scaled_s == pytest.approx(whole.measured_s, rel=0.05)
    assert sample.measured_s == sample.flop < 0.7 * whole.measured_s
    by_stage = {stage.stage: stage for stage in sample.stages}
    assert by_stage["patch"].sampled == 40
    assert by_stage["patch"].total == whole.plan["forwards"]
    assert by_stage["head"].total == whole.plan["superpixels"]
    assert sample.scaled_flop == pytest.approx(whole.flop)


def test_of_sixteen_passes_one_is_sampled(svs):
    sample = timed(svs, "stock", 3)
    by_stage = {stage.stage: stage for stage in sample.stages}
    assert (by_stage["region"].sampled, by_stage["region"].total) == (1, 16)
    assert (by_stage["patch"].sampled, by_stage["patch"].total) == (60, 4096)
    assert sample.scaled_s == pytest.approx(sample.plan["total_flop"])
    report = sample.to_dict()
    assert report["sampled"] is True
    assert report["stages"][0]["unit"] == "slides"
    reads = sum(stage.scaled_s for stage in sample.stages if "read" in stage.stage or stage.stage == "overview")
    assert report["scaled_s_without_reading"] == report["scaled_s"] - reads
    assert report["gflop_per_s"] == pytest.approx(1e-9)


@pytest.mark.parametrize("options", [{"centers": CENTERS}, {"spot_diameter_um": 55}])
def test_half_of_the_spots_description_is_refused(svs, options):
    with pytest.raises(ValueError, match="both"):
        timed(svs, "tissue", 1, **options)


def test_an_empty_sample_is_refused(svs):
    with pytest.raises(ValueError, match="sample_batches"):
        timed(svs, "tissue", 0)
