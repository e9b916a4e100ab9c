"""The cache gives the views that the server cuts, and cuts each of them once."""

from dataclasses import replace

import numpy as np
import pytest
from m2ost.data.errors import DataError
from m2ost.data.views import CHUNK, ViewCache
from m2ost_contract import ViewGeometry, as_centers
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.tiling.views import cut_views

from . import files

GEOMETRY = ViewGeometry(size_px=16)


@pytest.fixture
def section(tmp_path):
    n = CHUNK + 9
    made = files.section(np.ones((n, 2)), path=files.image(tmp_path / "image.png", (400, 300)))
    return replace(made, centers=np.random.default_rng(1).uniform((0, 0), (400, 300), (n, 2)))


@pytest.fixture
def cuts(monkeypatch):
    """Calls of a decoder's ``cut_views``."""
    calls, cut = [], Decoder.cut_views
    monkeypatch.setattr(Decoder, "cut_views", lambda *args: calls.append(1) or cut(*args))
    return calls


def direct(section):
    n = len(section)
    out = [np.empty((n, *GEOMETRY.shape), np.uint8) for _ in range(GEOMETRY.n_views)]
    scales = np.ones(n, np.float32)
    assert not cut_views(open_slide(section.image), as_centers(section.centers), scales, GEOMETRY, out).any()
    return np.stack(out, axis=1)


def test_the_views_are_those_cut_directly(tmp_path, section):
    views = ViewCache(tmp_path / "cache").views(section, GEOMETRY)
    np.testing.assert_array_equal(views, direct(section))
    assert not views.flags.writeable


def test_a_second_call_maps_the_same_file(tmp_path, section, cuts):
    cache = ViewCache(tmp_path / "cache")
    first = cache.views(section, GEOMETRY)
    done = len(cuts)
    second = ViewCache(tmp_path / "cache").views(section, GEOMETRY)
    assert isinstance(second, np.memmap)
    assert (second.filename, len(cuts)) == (first.filename, done)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_changed_image_is_cut_anew(tmp_path, section):
    cache = ViewCache(tmp_path / "cache")
    before = cache.views(section, GEOMETRY)
    files.image(section.image, (400, 300), seed=2)
    after = cache.views(section, GEOMETRY)
    assert after.filename != before.filename
    np.testing.assert_array_equal(after, direct(section))


def test_other_spots_or_another_geometry_are_cut_anew(tmp_path, section):
    cache = ViewCache(tmp_path / "cache")
    cache.views(section, GEOMETRY)
    assert cache.views(section.take([3, 1]), GEOMETRY).shape[0] == 2
    assert cache.views(section, ViewGeometry(size_px=8)).shape[2] == 8
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_folder_that_cannot_be_written(tmp_path, section):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DataError, match=r"file/cache: cannot keep views there: .*choose another folder"):
        ViewCache(file / "cache").views(section, GEOMETRY)
