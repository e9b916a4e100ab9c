"""Tiles are decoded once while they are kept, and make the same pixels as a reader that keeps nothing."""

import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from m2ost_preprocess.errors import UnreadableSlide
from m2ost_preprocess.readers import SlideReader, open_slide
from m2ost_preprocess.tiling.threads import Helpers
from m2ost_preprocess.tiling.tiles import CachedReader, TileCache, TilingCounts

from tests.preprocess.test_readers import damaged_tile

MIB = 1 << 20
SLIDES = [
    ("svs", "cucim"),
    ("svs", "openslide"),
    ("dicom", "openslide"),
    ("pyramid", "cucim"),
    ("pyramid", "openslide"),
]


@pytest.fixture(params=SLIDES, ids="-".join)
def plain(request):
    source, reader = request.param
    slide = open_slide(request.getfixturevalue(source), reader)
    yield slide
    slide.close()


def rectangles(size, n=12):
    random = np.random.default_rng(7)
    for _ in range(n):
        left, top = (int(random.integers(0, side)) for side in size)
        yield (
            left,
            top,
            *(int(random.integers(1, min(900, side - at) + 1)) for side, at in zip(size, (left, top), strict=True)),
        )
    yield 0, 0, min(size[0], 700), min(size[1], 300)
    yield size[0] - 1, size[1] - 1, 1, 1


def test_the_same_pixels(plain):
    cached = CachedReader(plain, TileCache(), "a")
    # OpenSlide resamples a level that is not a whole number of times smaller, a little differently for each rectangle.
    for level in range(len(plain.levels) if plain.name == "cucim" else 1):
        for box in rectangles(plain.levels[level]):
            np.testing.assert_array_equal(
                cached.read_at(level, *box), plain.read_at(level, *box), err_msg=f"{level} {box}"
            )


def test_every_tile_of_a_slide_is_decoded_once(svs):
    reader = open_slide(svs)
    cached = CachedReader(reader, TileCache(), "a")
    width, height = reader.size
    for box in rectangles(reader.size, 60):
        cached.read(*box)
    cached.read(0, 0, width, height)
    counts = cached.take_counts()
    tile_width, tile_height = reader.tile_size(0)
    assert counts.decoded_tiles == -(-width // tile_width) * -(-height // tile_height)
    assert counts.decoded_px == width * height
    assert cached.take_counts() == TilingCounts()
    cached.read(tile_width - 1, tile_height, 2, tile_height)
    assert cached.take_counts() == TilingCounts(cached_tiles=2, moved_bytes=2 * tile_height * 3)


def test_what_no_window_needs_is_not_decoded(pyramid):
    plain = open_slide(pyramid)
    reader = CachedReader(plain, TileCache(), "a")
    windows = np.array([(2000, 2000, 300), (4100, 2100, 300), (2050, 3900, 300)])
    left, top, width, height = 2000, 2000, 2400, 2200
    pixels = reader.read_padded(left, top, width, height, windows=windows)
    counts = reader.take_counts()
    assert counts.decoded_tiles == 3 * 4
    assert not reader.read_padded(0, 0, 100, 100, windows=np.array([(500, 500, 20)])).any()
    for x, y, side in windows.tolist():
        found = pixels[y - top : y - top + side, x - left : x - left + side]
        np.testing.assert_array_equal(found, plain.read(x, y, side, side))
    np.testing.assert_array_equal(reader.read(left, top, width, height), plain.read(left, top, width, height))


def test_what_is_kept_is_bounded_and_least_recently_used_goes_first(svs):
    reader = open_slide(svs)
    tile_width, tile_height = reader.tile_size(0)
    tile_bytes = tile_width * tile_height * 3
    cache = TileCache(4 * tile_bytes)
    cached = CachedReader(reader, cache, "a")

    def read(column):
        cached.read(column * tile_width, 0, 1, 1)
        return cached.take_counts().decoded_tiles

    assert [read(column) for column in (0, 1, 2, 3, 0, 4, 0, 1, 2)] == [1, 1, 1, 1, 0, 1, 0, 1, 1]
    assert cache.nbytes == 4 * tile_bytes
    np.testing.assert_array_equal(cached.read(0, 0, 2000, 2000), reader.read(0, 0, 2000, 2000))
    assert cache.nbytes <= cache.capacity_bytes


def test_nothing_is_kept_where_nothing_may_be(svs):
    cache = TileCache(0)
    cached = CachedReader(open_slide(svs), cache, "a")
    for _ in range(2):
        cached.read(0, 0, 10, 10)
    assert cached.take_counts().decoded_tiles == 2
    assert cache.nbytes == 0


def test_slides_and_levels_share_a_cache_and_nothing_else(svs, pyramid):
    cache = TileCache()
    readers = [CachedReader(open_slide(path), cache, key) for path, key in ((svs, "a"), (pyramid, "b"), (pyramid, "c"))]
    for reader in readers:
        for level in range(min(2, len(reader.levels))):
            expected = reader.uncached.read_at(level, 300, 200, 600, 500)
            np.testing.assert_array_equal(reader.read_at(level, 300, 200, 600, 500), expected)
            assert reader.take_counts().cached_tiles == 0


def test_a_plain_image_is_one_tile(section):
    reader = open_slide(section)
    cached = CachedReader(reader, TileCache(), "a")
    for _ in range(3):
        np.testing.assert_array_equal(cached.read(5, 6, 700, 800), reader.read(5, 6, 700, 800))
    width, height = reader.size
    assert cached.take_counts() == TilingCounts(decoded_tiles=1, decoded_px=width * height, cached_tiles=2)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_that_read_along_change_neither_pixels_nor_counts(plain, threads):
    helpers = Helpers(threads)
    alone, together = (CachedReader(plain, TileCache(), "a", h) for h in (None, helpers))
    for box in rectangles(plain.size):
        np.testing.assert_array_equal(together.read(*box), alone.read(*box), err_msg=f"{box}")
        assert together.take_counts() == alone.take_counts()
    helpers.close()


class Spilling(SlideReader):
    """Of its two rows of tiles the second is damaged; where both are read at once, both seem to be."""

    name, path, size, resolution = "test", Path("half.svs"), (32, 32), None
    levels, resident_bytes = [(32, 32)], 0

    def __init__(self):
        self.reads, self.together = [], threading.Barrier(2)

    def read_at(self, level, left, top, width, height):
        self.reads.append(top)
        if len(self.reads) <= 2:
            self.together.wait(30)
        if top == 16 or len(self.reads) <= 2:
            raise UnreadableSlide("half.svs", f"damaged at {top}")
        return np.full((height, width, 3), 9, np.uint8)

    def tile_size(self, level):
        return (16, 16)

    def close(self):
        pass


def test_damage_that_another_thread_saw_too_costs_only_its_own_tiles():
    plain, helpers = Spilling(), Helpers(1)
    cached = CachedReader(plain, TileCache(), "a", helpers)
    with pytest.raises(UnreadableSlide, match="damaged at 16"):
        cached.read(0, 0, 32, 32)
    assert plain.reads.count(0) == 2
    assert cached.take_counts() == TilingCounts(decoded_tiles=2, decoded_px=32 * 16)
    assert (cached.read(0, 0, 32, 16) == 9).all()
    assert cached.take_counts() == TilingCounts(cached_tiles=2, moved_bytes=32 * 16 * 3)
    helpers.close()


def test_a_damaged_tile_is_an_error_each_time_and_hides_no_other(svs, tmp_path):
    cached = CachedReader(open_slide(damaged_tile(svs, tmp_path), "openslide"), TileCache(), "a")
    bad = []
    for top in range(0, 2900, 240):
        for left in range(0, 2200, 240):
            try:
                cached.read(left, top, 10, 10)
            except UnreadableSlide:
                bad.append((left, top))
    assert len(bad) == 1
    for _ in range(2):
        with pytest.raises(UnreadableSlide):
            cached.read(*bad[0], 300, 300)


@pytest.mark.parametrize("kind", ["rgba", "planar"])
def test_threads_may_read_what_libtiff_converts_for_cucim(pyramid, tmp_path, kind):
    pixels, path = open_slide(pyramid).read(3000, 3000, 1536, 2048), tmp_path / f"{kind}.tif"
    if kind == "rgba":
        stored = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
        tifffile.imwrite(path, stored, tile=(128, 128), photometric="rgb", extrasamples=["unassalpha"])
    else:
        stored = np.moveaxis(pixels, 2, 0)
        tifffile.imwrite(path, stored, tile=(128, 128), photometric="rgb", planarconfig="separate")
    helpers, reader = Helpers(3), open_slide(path, "cucim")
    for _ in range(10):
        cached = CachedReader(reader, TileCache(), "a", helpers)
        np.testing.assert_array_equal(cached.read(0, 0, 1536, 2048), pixels)
    helpers.close()


def test_threads_recover_from_a_damaged_tile_of_openslide(svs, tmp_path):
    helpers = Helpers(3)
    for _ in range(5):
        cached = CachedReader(open_slide(damaged_tile(svs, tmp_path), "openslide"), TileCache(), "a", helpers)
        with pytest.raises(UnreadableSlide, match="damaged at x 0, y 0"):
            cached.read(0, 0, 1200, 1200)
        np.testing.assert_array_equal(cached.read(240, 0, 960, 1200), open_slide(svs).read(240, 0, 960, 1200))
        cached.close()
    helpers.close()


@pytest.mark.parametrize(("given", "mib"), [(None, 512), ("0", 0), ("64", 64)])
def test_the_environment_says_how_much_is_kept(monkeypatch, given, mib):
    monkeypatch.delenv("M2OST_TILE_CACHE_MIB", raising=False)
    if given is not None:
        monkeypatch.setenv("M2OST_TILE_CACHE_MIB", given)
    assert TileCache.from_environment().capacity_bytes == mib * MIB


@pytest.mark.parametrize("given", ["-1", "half", ""])
def test_a_size_that_is_none_is_refused(monkeypatch, given):
    monkeypatch.setenv("M2OST_TILE_CACHE_MIB", given)
    with pytest.raises(ValueError, match=f"M2OST_TILE_CACHE_MIB must be a whole number of MiB, not '{given}'"):
        TileCache.from_environment()
