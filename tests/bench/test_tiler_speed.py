"""The benchmark of tilers: all ways cut the same views, and what is needed is counted right."""

import numpy as np
import pytest
from m2ost_bench.tiler.layouts import layouts
from m2ost_bench.tiler.measure import compare_tilers, needed_px
from m2ost_bench.tiler.ways import BATCH_ROWS, OURS, all_cores, collect, ours, ways
from m2ost_preprocess.tiling.tiles import TilingCounts

pytestmark = pytest.mark.usefixtures("heavy")


def test_layouts_lie_on_the_slide_each_place_once():
    made = layouts((9274, 9911), 0.688)
    assert {name: len(centers) for name, centers in made.items()} == {
        "200 µm grid": 32 * 34,
        "100 µm grid": 64 * 68,
        "dense, 16 px": 64 * 64,
        "random": 1000,
    }
    for centers in made.values():
        assert ((centers >= 0) & (centers < (9274, 9911))).all()
        assert len(np.unique(centers, axis=0)) > 0.99 * len(centers)


@pytest.mark.parametrize("way", ways())
def test_every_way_gives_the_same_views(way, svs):
    centers = np.array([(700, 801), (700, 1000), (1500, 2001)], np.int32)
    for view, expected in zip(collect(ways()[way](svs, centers)), collect(ours(svs, centers)), strict=True):
        np.testing.assert_array_equal(view, expected)


@pytest.mark.parametrize("threads", [0, all_cores()])
def test_every_run_of_ours_decodes_the_slide_anew(threads, svs):
    runs = [TilingCounts(), TilingCounts()]
    for counts in runs:
        collect(ours(svs, np.array([(700, 801), (700, 1000)], np.int32), counts, threads=threads))
    assert runs[0] == runs[1]
    assert runs[0].decoded_tiles > 0


def test_what_is_needed_is_every_touched_tile_once():
    size, tile, corner = (2220, 2967), (240, 240), np.array([(2219, 2966)])
    # Tiles of 240 px; a window of 896 px from 1771, 2518 on, and a slide that ends at 2220, 2967.
    assert needed_px(size, tile, corner) == (2220 - 1680) * (2967 - 2400)
    assert needed_px(size, tile, np.concatenate([corner, corner - 1])) == needed_px(size, tile, corner)


def test_a_comparison_counts_and_compares(svs, monkeypatch):
    few = np.array([(x, y) for x in range(600, 1500, 150) for y in range(600, 2000, 200)], np.int32)
    monkeypatch.setattr("m2ost_bench.tiler.measure.layouts", lambda *_: {"few": few})
    [row] = compare_tilers(svs, 1, lambda name: None)
    assert len(few) > BATCH_ROWS
    assert row["spots"] == row["counts"]["spots"] == len(few)
    assert row["decoded_over_needed"] == 1.0
    assert set(row["times_as_fast"]) == set(row["equal"]) - set(OURS) == set(ways()) - set(OURS)
    assert all(row["equal"].values())
