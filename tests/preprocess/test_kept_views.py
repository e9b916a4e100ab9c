"""Views that are kept for another network: the same bytes, of the same content, within their bounds."""

import shutil

import numpy as np
import pytest
from m2ost_contract import ENV_VIEW_CACHE_MIB, RowStatus, ViewGeometry
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.tiling.kept_views import KeptViews
from m2ost_preprocess.tiling.tiles import TilingCounts

GEOMETRY = ViewGeometry(32, (1, 2))
CENTERS = np.random.default_rng(0).integers((200, 200), (2000, 2700), (20, 2)).astype(np.int32)
SCALES = np.ones(20, np.float32)


def cut(decoder, slide, centers=CENTERS, scales=SCALES, **options):
    """Views, statuses and counts."""
    views = [np.zeros((len(centers), *GEOMETRY.shape), np.uint8) for _ in GEOMETRY.names]
    counts = TilingCounts()
    statuses = decoder.cut_views(slide, centers, scales, views, counts=counts, **options)
    return views, statuses, counts


@pytest.fixture
def keeping():
    with Decoder(GEOMETRY, environment={ENV_VIEW_CACHE_MIB: "16"}) as decoder:
        yield decoder


def test_spots_asked_for_again_are_not_cut_again_and_come_out_the_same(keeping, svs):
    first, _, _ = cut(keeping, svs)
    order = np.random.default_rng(1).permutation(20)
    more = np.vstack([CENTERS[order], [[900, 901], [-5, 10]]]).astype(np.int32)
    again, statuses, counts = cut(keeping, svs, more, np.ones(22, np.float32))
    assert (counts.spots, counts.kept_spots) == (1, 20)
    assert statuses.tolist() == [RowStatus.OK] * 21 + [RowStatus.OUTSIDE_SLIDE]
    with Decoder(GEOMETRY) as plain:
        expected, _, none = cut(plain, svs, more, np.ones(22, np.float32))
    assert none.kept_spots == 0
    for found, wanted, before in zip(again, expected, first, strict=True):
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(found[:20], before[order])


def test_another_scale_way_or_content_is_cut_anew(keeping, svs, tmp_path):
    slide = tmp_path / "slide.svs"
    shutil.copyfile(svs, slide)
    cut(keeping, slide)
    assert cut(keeping, slide, scales=SCALES * 2)[2].kept_spots == 0
    assert cut(keeping, slide, pyramid=True)[2].kept_spots == 0
    assert cut(keeping, slide)[2].kept_spots == 20
    slide.touch()
    assert cut(keeping, slide)[2].kept_spots == 0


def test_no_more_is_kept_than_there_is_room_for():
    views = [np.full((9, 4, 4, 3), 7, np.uint8)]
    kept = KeptViews(5 * 48)
    centers, scales = np.arange(18, dtype=np.int32).reshape(9, 2), np.ones(9, np.float32)
    kept.keep("slide", centers, scales, views, np.zeros(9, np.int32))
    out = [np.zeros_like(views[0])]
    assert kept.fill("slide", centers, scales, out).tolist() == [0, 1, 2, 3]
    assert out[0].any(axis=(1, 2, 3)).tolist() == [False] * 4 + [True] * 5
    assert kept.fill("other slide", centers, scales, out).tolist() == list(range(9))


def test_a_row_without_views_is_not_kept():
    kept = KeptViews(1 << 20)
    centers, scales = np.array([[0, 0], [1, 1]], np.int32), np.ones(2, np.float32)
    kept.keep("slide", centers, scales, [np.ones((2, 4, 4, 3), np.uint8)], np.array([0, 1], np.int32))
    assert kept.fill("slide", centers, scales, [np.zeros((2, 4, 4, 3), np.uint8)]).tolist() == [1]


def test_room_that_is_no_number_is_said(monkeypatch):
    monkeypatch.setenv(ENV_VIEW_CACHE_MIB, "much")
    with pytest.raises(ValueError, match="M2OST_VIEW_CACHE_MIB must be a whole number of MiB, not 'much'"):
        KeptViews.from_environment()
