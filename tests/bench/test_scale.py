"""A very large slide out of a small one, and the squares of spots on it."""

import numpy as np
import pytest
from m2ost_bench.served.mosaic import TILE_PX, write_mosaic
from m2ost_bench.served.scale import ScaleOptions, squares, to_markdown
from m2ost_loadtests.errors import TargetError
from m2ost_preprocess.decoder import decoded_slide
from PIL import Image


def test_every_tile_is_tissue_of_the_slide_and_drawn_by_the_seed(svs, tmp_path):
    side = 5 * TILE_PX + 100
    kinds = write_mosaic(svs, tmp_path / "a.tif", side)
    write_mosaic(svs, tmp_path / "again.tif", side)
    write_mosaic(svs, tmp_path / "other.tif", side, seed=1)
    assert kinds > 5
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "again.tif").read_bytes()
    assert (tmp_path / "a.tif").read_bytes() != (tmp_path / "other.tif").read_bytes()
    with decoded_slide(svs) as source, decoded_slide(tmp_path / "a.tif") as made:
        assert (made.size, made.tile) == ((side, side), (TILE_PX, TILE_PX))
        width, height = source.size
        means = np.array(
            [
                source.read(x, y, TILE_PX, TILE_PX).mean(axis=(0, 1))
                for y in range(0, height - TILE_PX + 1, TILE_PX)
                for x in range(0, width - TILE_PX + 1, TILE_PX)
            ]
        )
        for left, top in ((0, 0), (TILE_PX, 3 * TILE_PX), (4 * TILE_PX, 2 * TILE_PX)):
            tile = made.read(left, top, TILE_PX, TILE_PX)
            assert np.abs(means - tile.mean(axis=(0, 1))).max(axis=1).min() < 2, "its colours are a tile's of the slide"


def test_a_slide_without_tissue_is_refused(tmp_path):
    Image.new("RGB", (600, 600), (243, 242, 243)).save(tmp_path / "glass.png")
    with pytest.raises(TargetError, match="give a slide with more tissue"):
        write_mosaic(tmp_path / "glass.png", tmp_path / "made.tif", 1000)
    assert not (tmp_path / "made.tif").exists()


def test_squares_share_their_pitch_and_lie_within_each_other():
    found = squares(ScaleOptions(side_px=4_000, spots=(1_600, 100)))
    assert list(found) == [100, 1_600]
    for n, centers in found.items():
        assert centers.shape == (n, 2)
        steps = np.unique(np.diff(np.unique(centers[:, 0])))
        assert set(steps) <= {99, 100, 101}
    small, large = found.values()
    assert large.min() >= 0
    assert large.max() < 4_000
    assert large.min() < small.min() < small.max() < large.max()


@pytest.mark.parametrize(("spread", "words"), [(0.2, "(NOT flat: at most 0.05)"), (0.05, "(flat: at most 0.05)")])
def test_what_is_not_flat_is_said(spread, words):
    memory = {"client": 1, "server": 2, "shared": 3}
    counted = {"decoded_over_needed": 1.2, "decoded_px": 5_000, "rows_a_spot": 1.0, "rows_a_run": 16}
    run = {"spots": 100, "answered": 100, "seconds": 2.0, "seconds_a_spot": 0.02, "memory_mib": memory, **counted}
    report = {
        "machine": {"processor": "P", "cores": 2},
        "slide": {"made_of": "a.svs", "tiles": 9, "side_px": 4_000, "bytes": 1 << 20},
        "runs": [run],
        "spread": {"decoded_over_needed": spread, "rows_a_spot": 0.0, "seconds_a_spot": 0.0},
    }
    text = to_markdown(report)
    assert "| 100 | 2.0 | 50.0 | 1.200 | 50 | 1.000 | 16.0 | 1, 2, 3 |" in text
    assert words in text
