"""What version 2677ac2 wrote is read, served and gone on with.

``tests/fixtures/2677ac2.tar.xz`` was made by that version: a checkpoint of depth 1 and width 4, its release, the
result of one slide, and an archive of two slides whose run was killed as it had written the first.
"""

import tarfile

import anndata
import numpy as np
import openslide
import pytest
import tifffile
from m2ost.checkpoint import load
from m2ost_contract import Release

from tests.support.command import m2ost
from tests.support.data import REPOSITORY

from .releases import by_pytorch

CORNERS = ((640, 1900), (900, 700))
"""Of the two slides, on CMU-1-Small-Region.svs."""


@pytest.fixture
def earlier(svs, tmp_path):
    with tarfile.open(REPOSITORY / "tests" / "fixtures" / "2677ac2.tar.xz") as kept:
        kept.extractall(tmp_path, filter="data")
    (tmp_path / "slides").mkdir()
    slide = openslide.OpenSlide(svs)
    for i, corner in enumerate(CORNERS):
        pixels = np.asarray(slide.read_region(corner, 0, (400, 400)).convert("RGB"))
        tifffile.imwrite(tmp_path / f"slides/part{i}.tif", pixels, photometric="rgb", metadata=None, software=False)
    return tmp_path


def test_a_checkpoint_predicts_what_it_did_and_a_release_and_a_result_are_read(earlier):
    result = anndata.read_h5ad(earlier / "result" / "part0.h5ad")
    found = by_pytorch(earlier / "release", earlier / "slides" / "part0.tif", result.obsm["spatial"])
    np.testing.assert_allclose(found, result.X, rtol=0, atol=1e-5)
    assert result.X.std(axis=0).min() > 1e-3
    card = load(earlier / "checkpoint")[1]
    assert card.genes == tuple(result.var_names) == Release.open(earlier / "release").manifest.engine.genes
    status, output, errors = m2ost("report", earlier / "result")
    assert status == 0, output + errors
    assert (earlier / "result" / "part0.report.html").is_file()


def test_a_half_done_archive_is_gone_on_with_by_its_release_served(earlier, monkeypatch):
    monkeypatch.chdir(earlier)
    before = anndata.read_h5ad("archive/results/part0.h5ad")
    status, output, errors = m2ost(
        "rescore", "slides.csv", "--release", "release", "--pitch-um", 20, "--out", "archive"
    )
    assert status == 0, output + errors
    after = {name: anndata.read_h5ad(f"archive/results/{name}.h5ad") for name in ("part0", "part1")}
    rows = [tuple(place) for place in after["part0"].obsm["spatial"]]
    common = [(i, rows.index(place)) for i, place in enumerate(map(tuple, before.obsm["spatial"])) if place in rows]
    assert len(common) > 50
    old, new = map(list, zip(*common, strict=True))
    np.testing.assert_allclose(after["part0"].X[new], before.X[old], rtol=0, atol=1e-5)
    assert np.isfinite(after["part1"].X).all()
