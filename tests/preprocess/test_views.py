"""Views are bit-exact with Pillow's own crop and resize of the whole image, from every reader."""

from collections import OrderedDict
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from m2ost_contract import RowStatus, ViewGeometry
from m2ost_preprocess.errors import UnreadableSlide
from m2ost_preprocess.readers import SlideReader, open_slide
from m2ost_preprocess.tiling.threads import Helpers
from m2ost_preprocess.tiling.tiles import DEFAULT_CACHE_MIB, CachedReader, TileCache, TilingCounts
from m2ost_preprocess.tiling.views import cut_views, fitting_level, spatial_order
from PIL import Image

GEOMETRY = ViewGeometry()
SOURCES = [
    ("svs", "cucim"),
    ("svs", "openslide"),
    ("dicom", "openslide"),
    ("pyramid", "cucim"),
    ("pyramid", "openslide"),
    ("section", "image"),
]


def definition(image, center, geometry, scale=1.0):
    """The views as the definition states them, by nothing but Pillow: crop (black outside), then resize."""
    views = []
    for factor in geometry.factors:
        side = max(1, int(np.floor(geometry.size_px * factor * scale + 0.5)))
        left, top = center[0] - side // 2, center[1] - side // 2
        crop = image.crop((left, top, left + side, top + side))
        views.append(np.asarray(crop.resize((geometry.size_px, geometry.size_px), Image.Resampling.BILINEAR)))
    return views


def cut(reader, centers, scales=None, geometry=GEOMETRY, counts=None, helpers=None):
    centers = np.asarray(centers, np.int32)
    scales = np.ones(len(centers), np.float32) if scales is None else np.asarray(scales, np.float32)
    out = [np.full((len(centers), *geometry.shape), 7, np.uint8) for _ in geometry.names]
    return out, cut_views(reader, centers, scales, geometry, out, counts, helpers=helpers)


def border_centers(size):
    width, height = size
    corners = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)]
    edges = [(width // 2, 3), (5, height // 2), (width - 113, height - 449), (111, 112), (449, 447)]
    residues = [(width // 2 + dx, height // 2 + dy) for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1), (2, 3), (3, 2))]
    return corners + edges + residues


@pytest.fixture(params=SOURCES, ids="-".join)
def opened(request):
    source, reader = request.param
    slide = open_slide(request.getfixturevalue(source), reader)
    yield slide
    slide.close()


def test_views_equal_pillows_crop_and_resize_at_borders_and_odd_coordinates(opened):
    image = Image.fromarray(opened.read(0, 0, *opened.size))
    centers = border_centers(opened.size)
    views, statuses = cut(opened, centers)
    assert (statuses == RowStatus.OK).all()
    for row, center in enumerate(centers):
        for view, expected in zip(views, definition(image, center, GEOMETRY), strict=True):
            np.testing.assert_array_equal(view[row], expected)


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.729, 1.38, 2.0])
def test_views_at_another_resolution_equal_pillows(svs, scale):
    reader = open_slide(svs)
    image = Image.fromarray(reader.read(0, 0, *reader.size))
    centers = [(0, 0), (1111, 1499), (2219, 2966)]
    views, _ = cut(reader, centers, [scale] * 3)
    for row, center in enumerate(centers):
        for view, expected in zip(views, definition(image, center, GEOMETRY, scale), strict=True):
            np.testing.assert_array_equal(view[row], expected)


@pytest.mark.parametrize("geometry", [ViewGeometry(256), ViewGeometry(224, (1, 2)), ViewGeometry(64, (1,))])
def test_other_geometries_equal_pillows(svs, geometry):
    reader = open_slide(svs)
    image = Image.fromarray(reader.read(0, 0, *reader.size))
    views, _ = cut(reader, [(700, 901)], geometry=geometry)
    for view, expected in zip(views, definition(image, (700, 901), geometry), strict=True):
        np.testing.assert_array_equal(view[0], expected)


def test_the_finest_view_is_the_slides_own_pixels(svs):
    reader = open_slide(svs)
    (fine, *_), _ = cut(reader, [(500, 600)])
    np.testing.assert_array_equal(fine[0], reader.read(388, 488, 224, 224))


def test_outside_the_slide_is_black(svs):
    reader = open_slide(svs)
    views, statuses = cut(reader, [(0, 0)])
    assert statuses[0] == RowStatus.OK
    for view in views:
        assert not view[0, :111, :].any()
        assert not view[0, :, :111].any()
        assert view[0, 113:, 113:].any()


def test_a_bad_row_costs_no_other(svs):
    reader = open_slide(svs)
    centers = [(800, 800), (-1, 5), (2220, 5), (5, 2967), (800, 800), (801, 800)]
    scales = [1, 1, 1, 1, np.nan, 99]
    views, statuses = cut(reader, centers, scales)
    outside, bad = RowStatus.OUTSIDE_SLIDE, RowStatus.BAD_SCALE
    assert statuses.tolist() == [RowStatus.OK, outside, outside, outside, bad, bad]
    assert views[0][0].any()
    assert not any(view[1:].any() for view in views)


def test_grouping_does_not_change_a_view(svs):
    reader = open_slide(svs)
    random = np.random.default_rng(3)
    centers = random.integers(0, (2220, 2967), (40, 2))
    together, _ = cut(reader, centers)
    order = random.permutation(40)
    shuffled, _ = cut(reader, centers[order])
    alone = [cut(reader, centers[i : i + 1])[0] for i in range(40)]
    for level in range(3):
        np.testing.assert_array_equal(shuffled[level], together[level][order])
        np.testing.assert_array_equal(np.concatenate([a[level] for a in alone]), together[level])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("layout", ["dense", "random"])
def test_threads_do_not_change_a_view(svs, threads, layout):
    random = np.random.default_rng(5)
    dense = np.stack(np.meshgrid(np.arange(480, 560, 16), np.arange(900, 1060, 16)), -1).reshape(-1, 2)
    centers = dense if layout == "dense" else random.integers(0, (2220, 2967), (40, 2))
    expected, statuses = cut(open_slide(svs), centers)
    helpers = Helpers(threads)
    for _ in range(3):
        found, again = cut(CachedReader(open_slide(svs), TileCache(), "slide"), centers, helpers=helpers)
        np.testing.assert_array_equal(again, statuses)
        for view, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(view, other)
    helpers.close()


def test_counts_say_what_was_read(svs):
    reader = open_slide(svs)
    counts = TilingCounts()
    cut(reader, [(1000, 1000), (1010, 1000), (2219, 2966)], counts=counts)
    # The last window reaches beyond the slide's corner, and half of each of its sides lies inside.
    needed = 2 * 896**2 + 449**2
    assert counts == TilingCounts(spots=3, regions=2, needed_px=needed, moved_bytes=3 * 3 * 224 * 224 * 3)


@pytest.mark.parametrize("threads", [0, 2])
def test_damage_costs_the_spots_whose_windows_touch_it_and_no_other(threads):
    class HalfBroken(SlideReader):
        name, path, size, resolution = "test", Path("half.svs"), (8192, 1024), None
        levels, resident_bytes = [(8192, 1024)], 0

        def read_at(self, level, left, top, width, height):
            if left + width > 5000:
                raise UnreadableSlide("half.svs", "damaged tile")
            return np.full((height, width, 3), 9, np.uint8)

        def tile_size(self, level):
            return None

        def close(self):
            pass

    centers = [(1000, 500), (7000, 500), (1200, 500), (4600, 500), (4500, 500), (4552, 500), (4553, 500)]
    helpers = Helpers(threads)
    views, statuses = cut(HalfBroken(), centers, helpers=helpers)
    helpers.close()
    ok, failed = RowStatus.OK, RowStatus.DECODE_FAILED
    assert statuses.tolist() == [ok, failed, ok, failed, ok, ok, failed]
    assert views[0][statuses == ok].min() == 9
    assert not views[0][statuses == failed].any()
    alone = [cut(HalfBroken(), [center])[1][0] for center in centers]
    assert statuses.tolist() == alone


def test_no_rows_are_no_work(svs, monkeypatch):
    counts, reader = TilingCounts(), open_slide(svs)
    for name in ("read_at", "read_needed", "read_padded"):
        monkeypatch.setattr(reader, name, None)  # a call of it would fail
    _, statuses = cut(reader, np.zeros((0, 2)), counts=counts)
    assert (statuses.shape, statuses.dtype) == ((0,), np.int32)
    assert counts == TilingCounts()


def columns(left, tops):
    return [(left, top) for top in tops]


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.5, 0.729])
def test_columns_that_share_their_resizes_equal_pillows_at_every_residue(svs, scale):
    reader = open_slide(svs)
    image = Image.fromarray(reader.read(0, 0, *reader.size))
    # Every remainder by 4 across and down, alone and with neighbours in the same column; one far below the rest.
    centers = [c for x in range(4) for c in columns(1000 + x, [*range(1000, 1008), 1016, 1024, 1250, 2900])]
    centers += [c for x in range(4) for c in columns(40 + 9 * x, range(x, 64 + x, 16))]
    views, statuses = cut(reader, centers, [scale] * len(centers))
    assert not statuses.any()
    for row, center in enumerate(centers):
        for view, expected in zip(views, definition(image, center, GEOMETRY, scale), strict=True):
            np.testing.assert_array_equal(view[row], expected)


def test_a_dense_grid_equals_pillows_whatever_the_order(svs):
    reader = open_slide(svs)
    image = Image.fromarray(reader.read(0, 0, *reader.size))
    dense = [(x, y) for x in range(500, 564, 16) for y in range(700, 956, 16)]
    shuffled = np.random.default_rng(1).permutation(dense)
    views, _ = cut(reader, shuffled)
    for row in range(0, len(shuffled), 5):
        for view, expected in zip(views, definition(image, shuffled[row].tolist(), GEOMETRY), strict=True):
            np.testing.assert_array_equal(view[row], expected)


def test_lower_levels_serve_coarse_views_where_they_fit(pyramid):
    reader = open_slide(pyramid)
    center = (4000, 5000)
    centers, scales = np.array([center], np.int32), np.ones(1, np.float32)
    native = [np.zeros((1, *GEOMETRY.shape), np.uint8) for _ in GEOMETRY.names]
    lower = [np.zeros_like(view) for view in native]
    cached = CachedReader(reader, TileCache(), "a")
    assert not cut_views(cached, centers, scales, GEOMETRY, native).any()
    whole = cached.take_counts().decoded_px
    cached = CachedReader(reader, TileCache(), "a")
    assert not cut_views(cached, centers, scales, GEOMETRY, lower, pyramid=True).any()
    assert cached.take_counts().decoded_px < whole / 2
    np.testing.assert_array_equal(lower[0], native[0])
    # Levels 1 and 2 are 2 and 4 times smaller: their pixels are the views.
    for view, level, left, top in ((1, 1, 1888, 2388), (2, 2, 888, 1138)):
        np.testing.assert_array_equal(lower[view][0], reader.read_at(level, left, top, 224, 224))
        difference = np.abs(lower[view].astype(int) - native[view])
        assert 0 < difference.mean() < native[view].std() / 2


@pytest.mark.parametrize(
    ("ratio", "level"), [(0.5, 0), (1.0, 0), (1.9, 0), (2.0, 1), (3.9, 1), (4.0, 2), (7.0, 2), (1e9, 5)]
)
def test_a_level_coarser_than_the_view_never_fits(pyramid, ratio, level):
    assert fitting_level(open_slide(pyramid), ratio) == level


def test_a_slide_without_lower_levels_gives_the_definitions_views(svs):
    centers, scales = np.array([(700, 801), (5, 9)], np.int32), np.ones(2, np.float32)
    found = [np.zeros((2, *GEOMETRY.shape), np.uint8) for _ in GEOMETRY.names]
    cut_views(open_slide(svs), centers, scales, GEOMETRY, found, pyramid=True)
    for have, want in zip(found, cut(open_slide(svs), centers)[0], strict=True):
        np.testing.assert_array_equal(have, want)


def test_spatial_order_keeps_neighbours_together_and_every_spot_once():
    centers = np.random.default_rng(0).integers(0, 20000, (500, 2))
    order = spatial_order(centers)
    assert sorted(order.tolist()) == list(range(500))
    squares = [tuple(square) for square in centers[order] // 2048]
    assert len(set(squares)) == 1 + sum(a != b for a, b in pairwise(squares))


@pytest.mark.parametrize("window_px", [896, 1792])
def test_on_a_wide_slide_a_tile_is_still_kept_when_it_is_needed_again(window_px):
    tile_px, capacity = 256, DEFAULT_CACHE_MIB * (1 << 20) // (3 * 256 * 256)
    ys, xs = np.mgrid[448:20_000:400, 448:120_000:400]
    centers = np.stack([xs.ravel(), ys.ravel()], axis=1)
    kept, decoded, needed = OrderedDict(), 0, set()
    for x, y in (centers[spatial_order(centers, window_px=window_px)] - window_px // 2).tolist():
        columns = range(x // tile_px, (x + window_px - 1) // tile_px + 1)
        for tile in product(columns, range(y // tile_px, (y + window_px - 1) // tile_px + 1)):
            needed.add(tile)
            decoded += tile not in kept
            kept[tile] = None
            kept.move_to_end(tile)
            if len(kept) > capacity:
                kept.popitem(last=False)
    assert decoded / len(needed) <= 1.10
