"""All stages against the description followed literally, on whole arrays."""

import time
from dataclasses import replace

import numpy as np
import pytest
from m2ost_contract import RowStatus
from m2ost_istar.disks import disks
from m2ost_istar.features import FeatureMap, mean_colours
from m2ost_istar.geometry import VARIANTS, plan
from m2ost_istar.pipeline import predict_slide
from m2ost_istar.run import SlideRun
from m2ost_istar.scaled import ScaledSlide
from m2ost_istar.stopwatch import Stopwatch
from m2ost_preprocess.decoder import DecodedSlide, Decoder
from m2ost_preprocess.errors import SlideError, SpotError, UnreadableSlide
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides.tissue import tissue_mask
from scipy.ndimage import uniform_filter

from ..slides import ArraySlide

pytestmark = pytest.mark.usefixtures("heavy")

MPP = 0.688
CENTERS = np.array([[300, 400], [0, 0], [999, 1299], [620, 900], [500, 1300], [130, 1200]], np.int32)


def literally(pixels, networks, variant):
    """Features of every superpixel, with the whole slide, all passes and all patches in memory at once."""
    work = plan((pixels.shape[1], pixels.shape[0]), MPP, variant)
    image = ScaledSlide(ArraySlide(pixels), work, Stopwatch()).read(0, 0, *work.padded_px)
    height, width = image.shape[:2]
    rows, columns = height // 16, width // 16
    sums = np.zeros((rows, columns, networks.sizes.patch_dim + networks.sizes.region_dim))
    seen = np.zeros((rows, columns, 1))
    for y, x in variant.shifts:
        margin = 256 if variant.shifted else 0
        crop = image[y : height - margin + y, x : width - margin + x]
        tiles = np.pad(crop, ((0, -crop.shape[0] % 4096), (0, -crop.shape[1] % 4096), (0, 0)), mode="edge")
        grid = tiles.shape[0] // 256, tiles.shape[1] // 256
        patches = tiles.reshape(grid[0], 256, grid[1], 256, 3).swapaxes(1, 2).reshape(-1, 256, 256, 3)
        cls, tokens = networks.patch(patches)
        region = networks.region(cls.reshape(*grid, -1)).repeat(16, axis=0).repeat(16, axis=1)
        tokens = tokens.reshape(*grid, 16, 16, -1).swapaxes(1, 2).reshape(grid[0] * 16, grid[1] * 16, -1)
        both = np.concatenate([region, tokens], axis=2)[: crop.shape[0] // 16, : crop.shape[1] // 16]
        place = slice(y // 16, y // 16 + both.shape[0]), slice(x // 16, x // 16 + both.shape[1])
        sums[place] += both
        seen[place] += 1
    last = np.flatnonzero(seen[:, 0])[-1] + 1, np.flatnonzero(seen[0])[-1] + 1
    mean = (sums / np.maximum(seen, 1))[: last[0], : last[1]]
    mean = np.pad(mean, ((0, rows - last[0]), (0, columns - last[1]), (0, 0)), mode="edge")
    split = networks.sizes.region_dim
    smooth = [uniform_filter(mean[..., :split], (16, 16, 0)), uniform_filter(mean[..., split:], (4, 4, 0))]
    return work, np.concatenate([*smooth, image.reshape(rows, 16, columns, 16, 3).mean(axis=(1, 3)) / 255], axis=2)


def by_disks(work, features, networks, centers, diameter_um):
    predicted = networks.head(features.reshape(-1, features.shape[2]).astype(np.float32))
    row, column = np.indices(features.shape[:2])
    expected = np.full((len(centers), predicted.shape[1]), np.nan)
    scale = np.divide(work.scaled_px, work.size_px)
    for spot, center in enumerate(centers):
        if (center < 0).any() or (center >= work.size_px).any():
            continue
        x, y = center * scale
        near = np.hypot((column + 0.5) * 16 - x, (row + 0.5) * 16 - y) <= diameter_um / 0.5 / 2
        expected[spot] = predicted[near.ravel()].mean(axis=0)
    return expected


@pytest.mark.parametrize("name", ["no_shift", "stock"])
def test_a_slide_comes_out_as_the_description_followed_literally(tissue_pixels, colours, name):
    variant = VARIANTS[name]
    if name == "stock":  # four of the sixteen: one whole pass is 4096 px wide, whatever the slide
        variant = replace(variant, starts=(0, 192))
    work, features = literally(tissue_pixels, colours, variant)
    expression, status = predict_slide(
        ArraySlide(tissue_pixels),
        CENTERS,
        mpp=MPP,
        spot_diameter_um=100,
        networks=colours,
        variant=variant,
        batch_rows=256,
    )
    out = RowStatus.OUTSIDE_SLIDE
    assert status.tolist() == [0, 0, 0, 0, out, 0]
    expected = by_disks(work, features, colours, CENTERS, 100)
    np.testing.assert_allclose(expression, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert np.nanstd(expected, axis=0).min() > 0.01, "spots without contrast would pass by luck"


def run_to_features(pixels, networks, variant, batch_rows=64, in_flight=1, mpp=MPP):
    slide = ArraySlide(pixels)
    work = plan(slide.size, mpp, variant, tissue_mask(slide.thumbnail(1024)), sizes=networks.sizes)
    run = SlideRun(slide, work, networks, batch_rows=batch_rows, watch=Stopwatch(), in_flight=in_flight)
    run.prepare()
    run.extract(run.batches)
    return run


def test_tissue_alone_has_the_patch_features_of_the_whole(tissue_pixels, colours):
    whole = run_to_features(tissue_pixels, colours, VARIANTS["no_shift"])
    tissue = run_to_features(tissue_pixels, colours, VARIANTS["tissue"])
    held = tissue.work.positions[1:, 1:]
    grid = whole.work.padded_px[1] // 256, whole.work.padded_px[0] // 256
    assert 0 < len(held) < grid[0] * grid[1], "a slide that is all tissue shows nothing"
    for row, column in held:
        np.testing.assert_array_equal(tissue.features.cls_grid(0)[row, column], whole.features.cls_grid(0)[row, column])
    white = colours.patch(np.full((1, 256, 256, 3), 255, np.uint8))[0][0]
    others = sorted({(r, c) for r in range(grid[0]) for c in range(grid[1])} - {tuple(p) for p in held})
    for row, column in others:
        np.testing.assert_array_equal(tissue.features.cls_grid(0)[row, column], white)
    # Far enough inside tissue for no mean to look beyond it, the tokens' features are the same too.
    inner = [
        (r, c) for r, c in held if all((r + i, c + j) in set(map(tuple, held)) for i in (-1, 0, 1) for j in (-1, 0, 1))
    ]
    assert inner
    split = colours.sizes.region_dim
    for row, column in inner:
        a, b = (run.features.window(row * 16, column * 16, 16, 16)[..., split:] for run in (tissue, whole))
        np.testing.assert_array_equal(a, b)


def test_only_superpixels_inside_spots_are_predicted_for_tissue(tissue_pixels, colours):
    run = run_to_features(tissue_pixels, colours, VARIANTS["tissue"])
    spots = disks(run.work.size_px, MPP, run.work.superpixel_grid, CENTERS, 100)
    found = np.concatenate([run.predict(block, spots)[0] for block in run.blocks(spots)])
    np.testing.assert_array_equal(np.sort(found), spots.distinct)
    everything = np.concatenate([run.predict(block)[0] for block in run.blocks()])
    assert len(everything) == len(set(everything)) == run.work.superpixels


@pytest.mark.parametrize(
    ("name", "batch_rows", "in_flight"), [("no_shift", 7, 3), ("tissue", 1, 1), ("tissue", 256, 2)]
)
def test_batches_do_not_matter(tissue_pixels, colours, name, batch_rows, in_flight):
    def predict(**options):
        return predict_slide(
            ArraySlide(tissue_pixels),
            CENTERS,
            mpp=MPP,
            spot_diameter_um=55,
            networks=colours,
            variant=VARIANTS[name],
            **options,
        )[0]

    np.testing.assert_array_equal(predict(batch_rows=batch_rows, in_flight=in_flight), predict(batch_rows=64))


def test_windows_of_features_are_cut_from_the_smoothed_whole(colours):
    work = plan((1024, 768), 0.5, VARIANTS["no_shift"], sizes=colours.sizes)
    features, random = FeatureMap(work), np.random.default_rng(0)
    features._tokens[:] = random.normal(size=features._tokens.shape)
    features._region[:] = random.normal(size=features._region.shape)
    features._colours[:] = random.random(features._colours.shape)
    region = features._region.repeat(4, axis=0).repeat(4, axis=1)
    tokens = np.stack([uniform_filter(c, 4) for c in np.moveaxis(features._tokens, 2, 0)], axis=2)
    region = np.stack([uniform_filter(c, 16) for c in np.moveaxis(region, 2, 0)], axis=2)
    whole = np.concatenate([region, tokens, features._colours], axis=2)
    for top, left, height, width in [(0, 0, 48, 64), (0, 0, 5, 5), (43, 60, 5, 4), (13, 22, 16, 16)]:
        found = features.window(top, left, height, width)
        np.testing.assert_allclose(found, whole[top : top + height, left : left + width], atol=1e-5)


def test_smoothing_and_assembly_by_hand(colours):
    work = plan((512, 256), 0.5, VARIANTS["no_shift"], sizes=colours.sizes)
    features = FeatureMap(work)
    features._tokens[8, 8, 1] = 16.0  # one token of a patch, spread over 4×4 superpixels
    features._region[0:4, 0:4, 0] = 1.0  # one patch of two, spread by half a patch
    features._colours[3, 30] = (0.1, 0.2, 0.3)
    window = features.window(0, 0, 16, 32)
    assert window.shape == (16, 32, 2 + 4 + 3)
    spread = np.zeros((16, 32))
    spread[7:11, 7:11] = 1.0
    np.testing.assert_allclose(window[..., 3], spread, atol=1e-6)
    ramp = np.clip((24 - np.arange(32)) / 16, 0, 1)
    np.testing.assert_allclose(window[..., 0], np.broadcast_to(ramp, (16, 32)), atol=1e-6)
    np.testing.assert_allclose(window[3, 30, 6:], (0.1, 0.2, 0.3), atol=1e-7)
    assert np.count_nonzero(window[..., 6:]) == 3


def test_colours_are_means_over_sixteen_pixels():
    pixels = np.zeros((32, 16, 3), np.uint8)
    pixels[16:, :8, 2] = 255
    np.testing.assert_allclose(mean_colours(pixels)[:, 0], [[0, 0, 0], [0, 0, 0.5]])


def test_a_slide_with_damage_has_no_value_and_says_so(tissue_pixels, colours):
    class Damaged(ArraySlide):
        def read(self, left, top, width, height):
            if top > 600:
                raise UnreadableSlide("a.svs", "damaged")
            return super().read(left, top, width, height)

    for in_flight in (1, 3):
        with pytest.raises(SlideError, match=r"a\.svs: damaged"):
            predict_slide(
                Damaged(tissue_pixels),
                CENTERS,
                mpp=MPP,
                spot_diameter_um=100,
                networks=colours,
                variant=VARIANTS["tissue"],
                batch_rows=4,
                in_flight=in_flight,
            )


def test_no_spots_and_no_batch_are_refused(tissue_pixels, colours):
    options = {"mpp": MPP, "spot_diameter_um": 100, "networks": colours, "variant": VARIANTS["tissue"]}
    with pytest.raises(SpotError, match="no spots"):
        predict_slide(ArraySlide(tissue_pixels), np.zeros((0, 2)), batch_rows=4, **options)
    with pytest.raises(ValueError, match="batch_rows"):
        predict_slide(ArraySlide(tissue_pixels), CENTERS, batch_rows=0, **options)


def test_a_decoder_process_gives_the_same(svs, colours):
    options = {
        "mpp": 0.499,
        "spot_diameter_um": 100,
        "networks": colours,
        "variant": VARIANTS["tissue"],
        "batch_rows": 16,
    }
    centers = [(800, 900), (1500, 2000)]
    expected, _ = predict_slide(open_slide(svs), centers, **options)
    with Decoder() as decoder:
        found, _ = predict_slide(DecodedSlide(decoder, svs, decoder.describe(svs)), centers, **options)
    np.testing.assert_array_equal(found, expected)


def test_stages_are_reported_as_they_end(tissue_pixels, colours):
    seconds, began = {}, time.perf_counter()
    predict_slide(
        ArraySlide(tissue_pixels),
        CENTERS,
        mpp=MPP,
        spot_diameter_um=100,
        networks=colours,
        variant=VARIANTS["tissue"],
        batch_rows=16,
        on_stage=lambda stage, spent: seconds.update({stage: seconds.get(stage, 0) + spent}),
    )
    assert set(seconds) == {"read", "rescale", "patch", "features", "region", "head", "spots"}
    assert all(spent > 0 for spent in seconds.values())
    assert sum(seconds.values()) <= time.perf_counter() - began, "no second is told twice"
