"""One result as every file tells it: what its values are, and a slide of a single spot."""

import json
from dataclasses import replace

import anndata
import numpy as np
import pytest
from m2ost_client import maps
from m2ost_client.answers import read_engine
from m2ost_client.reports import read_stored
from typer.testing import CliRunner

from tests.attack import liar
from tests.attack.liar import Liar
from tests.support.releases import ENGINE

SLIDE = "root/a.png"
TOTAL = replace(ENGINE, target="log1p_cpm_total")
"""A release whose values are not those that most releases declare."""


def run(*arguments):
    from m2ost_cli.main import app

    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exception is None, repr(done.exception)


def predict(server, out, *options):
    run("predict", SLIDE, "--server", server.address, "--out", out, "--geojson", "--report", *options)
    return out / "a.h5ad"


def test_what_the_values_are_is_told_by_every_file_as_the_release_declares_it(tmp_path):
    with Liar(TOTAL) as server:
        table = predict(server, tmp_path)
    result, metadata = read_stored(table)
    assert result.engine.target == metadata["target"] == TOTAL.target
    assert json.loads((tmp_path / "a.json").read_text())["target"] == TOTAL.target
    assert json.loads((tmp_path / "a.geojson").read_text())["m2ost"]["measurements"] == TOTAL.target
    page = (tmp_path / "a.report.html").read_text()
    assert TOTAL.target in page
    assert ENGINE.target not in page


def test_a_map_names_what_its_colours_are(result, tmp_path):
    drawn = {}
    for engine in (ENGINE, TOTAL):
        path = tmp_path / f"{engine.target}.png"
        maps.draw_gene(replace(result, engine=engine), "DDX5", path)
        drawn[engine.target] = path.read_bytes()
    assert drawn[ENGINE.target] != drawn[TOTAL.target], "the colour bar's label says the target"


def test_a_declared_target_that_this_version_does_not_know_is_handed_on_as_it_is():
    newer = replace(ENGINE, target="counts of a later version")
    assert read_engine(newer.to_parameters()) == newer


@pytest.fixture
def one_spot(tmp_path):
    """A file of one spot, and where it lies."""
    path = tmp_path / "spot.csv"
    path.write_text("x,y\n900,700\n")
    return path, np.array([[900, 700]], np.int32)


def test_a_slide_of_one_spot_has_every_file(one_spot, tmp_path):
    spots, center = one_spot
    with Liar(ENGINE) as server:
        table = predict(server, tmp_path / "out", "--spots", spots, "--map", "DDX5")
    expected = liar.true_values(center, len(ENGINE.genes))
    adata = anndata.read_h5ad(table)
    np.testing.assert_array_equal(adata.X, expected)
    np.testing.assert_array_equal(adata.obsm["spatial"], center)
    (feature,) = json.loads((tmp_path / "out" / "a.geojson").read_text())["features"]
    assert feature["properties"]["measurements"]["DDX5"] == pytest.approx(expected[0, 0])
    assert (tmp_path / "out" / "a.DDX5.png").stat().st_size
    result, _ = read_stored(table)
    np.testing.assert_array_equal(result.expression, expected)


@pytest.mark.parametrize("batch_rows", [1, 2])
def test_an_archives_slide_of_one_spot(one_spot, tmp_path, batch_rows):
    spots, center = one_spot
    slides = tmp_path / "slides.csv"
    slides.write_text(f"slide_id,path,spots\na,{SLIDE},{spots}\nb,{SLIDE},\n")
    with Liar(ENGINE) as server:
        options = ("--server", server.address, "--out", tmp_path / "out", "--batch-rows", batch_rows)
        run("rescore", slides, *options)
    for name, centers in (("a", center), ("b", liar.GRID)):
        adata = anndata.read_h5ad(tmp_path / "out" / "results" / f"{name}.h5ad")
        np.testing.assert_array_equal(adata.X, liar.true_values(centers, len(ENGINE.genes)))
