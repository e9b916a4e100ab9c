"""The array form of Pillow's resize: the same bits, for every window that a spot can have."""

import numpy as np
import pytest
from m2ost_contract import SCALE_MAX, SCALE_MIN, ViewGeometry
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.tiling.resample import cut_spots, resize, taps
from m2ost_preprocess.tiling.views import cut_views
from PIL import Image


@pytest.fixture(scope="module")
def section_pixels(pyramid):
    """Tissue of a real section, wide enough for the coarsest view at scale 2."""
    return open_slide(pyramid).read(3000, 3000, 2304, 2304)


def by_pillow(window, size_px):
    return np.asarray(Image.fromarray(window).resize((size_px, size_px), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("size_px", [224, 256])
@pytest.mark.parametrize("scale", [SCALE_MIN, 0.37, 0.5, 0.729, 1, 1.38, 2])
def test_windows_of_every_view_equal_pillows(section_pixels, scale, size_px):
    geometry = ViewGeometry(size_px)
    sides = {geometry.window_px(view, scale) for view in range(3)}
    for side in sides:
        windows = np.stack([section_pixels[i : i + side, 3 * i : 3 * i + side] for i in range(2)])
        expected = [by_pillow(window, size_px) for window in windows]
        np.testing.assert_array_equal(resize(np, windows, size_px), expected)


def test_any_side_to_any_size_equals_pillows(section_pixels):
    random = np.random.default_rng(0)
    for size_px in (2, 6, 64, 224):
        for side in [1, 2, 3, 5, *random.integers(4, 900, 12).tolist()]:
            window = section_pixels[:side, :side]
            np.testing.assert_array_equal(resize(np, window[None], size_px)[0], by_pillow(window, size_px))


def test_extremes_do_not_overflow():
    for side in (448, 617, 896, 1792):
        random = np.random.default_rng(side).integers(0, 2, (side, side, 3), np.uint8) * np.uint8(255)
        for window in (random, np.full((side, side, 3), 255, np.uint8)):
            np.testing.assert_array_equal(resize(np, window[None], 224)[0], by_pillow(window, 224))


@pytest.mark.parametrize(("factor", "weights"), [(2, [1, 3, 3, 1]), (4, [1, 3, 5, 7, 7, 5, 3, 1])])
def test_the_papers_factors_have_the_papers_weights(factor, weights):
    plan = taps(224 * factor, 224)
    inner = plan.weights[1:-1, : 2 * factor] * sum(weights) / 2**22
    assert (inner == weights).all()
    np.testing.assert_allclose(plan.weights[0, : len(weights) - factor // 2].sum() / 2**22, 1, atol=1e-6)


@pytest.mark.parametrize("scale", [0.37, 0.5, 1, 1.38])
def test_views_from_a_region_equal_the_cpu_tilers_at_all_residues_and_borders(svs, scale):
    reader = open_slide(svs)
    geometry = ViewGeometry()
    width, height = reader.size
    residues = [(901 + i, 1203 + (3 * i) % 8) for i in range(8)]
    corners = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1), (width // 2, 5)]
    centers = np.array(residues + corners, np.int32)
    expected, found = ([np.zeros((len(centers), *geometry.shape), np.uint8) for _ in range(3)] for _ in range(2))
    assert not cut_views(reader, centers, np.full(len(centers), scale, np.float32), geometry, expected).any()
    margin = geometry.window_px(2, scale)
    region = reader.read_padded(-margin, -margin, width + 2 * margin, height + 2 * margin)
    order = np.random.default_rng(1).permutation(len(centers))
    cut_spots(np, region, (-margin, -margin), centers[order], scale, geometry, found, order)
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(have, want)


def test_the_largest_scale_equals_the_cpu_tilers(pyramid):
    reader = open_slide(pyramid)
    geometry, center = ViewGeometry(), np.array([[4003, 5001]], np.int32)
    expected, found = ([np.zeros((1, *geometry.shape), np.uint8) for _ in range(3)] for _ in range(2))
    cut_views(reader, center, np.full(1, SCALE_MAX, np.float32), geometry, expected)
    left, top, side = geometry.windows((4003, 5001), SCALE_MAX)[-1]
    cut_spots(np, reader.read_padded(left, top, side, side), (left, top), center, SCALE_MAX, geometry, found, [0])
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("geometry", [ViewGeometry(256), ViewGeometry(224, (1, 2)), ViewGeometry(64, (1,))], ids=str)
def test_other_geometries_equal_the_cpu_tilers(svs, geometry):
    reader = open_slide(svs)
    centers = np.array([[700, 901], [703, 902]], np.int32)
    expected, found = ([np.zeros((2, *geometry.shape), np.uint8) for _ in geometry.names] for _ in range(2))
    cut_views(reader, centers, np.ones(2, np.float32), geometry, expected)
    cut_spots(np, reader.read(0, 0, 2000, 2000), (0, 0), centers, 1.0, geometry, found, np.arange(2))
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(have, want)
