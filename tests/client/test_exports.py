"""GeoJSON, SpatialData, and results read back from disk: each opened by the library that its users open it with."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import shapely
import shapely.geometry
from m2ost_cli.main import app
from m2ost_client.errors import InputError, OutputError
from m2ost_client.exports import Exports
from m2ost_client.files import add_exports, write_result
from m2ost_client.reports import Failure, export_stored, find_results, read_stored, report, write_geojson, writers
from m2ost_client.reports.archive import read_failures
from m2ost_client.tables import to_anndata
from m2ost_contract import RowStatus
from typer.testing import CliRunner

from tests.support.releases import ENGINE

ALL = Exports(geojson=True, spatialdata=True, report=True)
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def metadata(result, **more):
    """What a run records, as far as a table needs it to be read again."""
    return {
        "slide": "slides/slide.svs",
        "trained": result.engine.trained,
        "checkpoint_sha256": ENGINE.checkpoint_sha256,
        "release_sha256": ENGINE.release_sha256,
        "precision": "fp32",
        "target": ENGINE.target,
        "slide_facts": {**result.slide.facts(), "size": list(result.slide.size)},
        "views": {**ENGINE.views.to_dict(), "mpp": None, "trained_at_mpp": ENGINE.mpp},
        "spots": {"count": len(result.spots), "source": "grid", "by_status": result.counts_by_status()},
        "timings": {"score_s": 2.0},
        **more,
    }


def empty(result):
    spots = replace(result.spots, centers=np.zeros((0, 2)), names=())
    return replace(result, spots=spots, expression=result.expression[:0], status=result.status[:0])


def geojson(result, path, genes=()):
    write_geojson(result, path, genes)
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_feature_is_what_qupath_reads(result, tmp_path):
    collection = geojson(result, tmp_path / "a.geojson", ["B2M", "ERBB2"])
    assert collection["type"] == "FeatureCollection"
    assert collection["m2ost"]["spots"] == len(collection["features"]) == 79
    assert collection["m2ost"]["left_out"] == {"OUTSIDE_SLIDE": 1}
    feature = collection["features"][1]
    assert str(UUID(feature.pop("id"))) != str(UUID(collection["features"][0]["id"]))
    assert feature == {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[100, 0], [200, 0], [200, 100], [100, 100], [100, 0]]]},
        "properties": {
            "objectType": "detection",
            "name": "s1",
            "classification": {"name": "M2OST spot, UNTRAINED", "color": [150, 150, 150]},
            "measurements": {
                "B2M": float(str(result.expression[1, 1])),
                "ERBB2": float(str(result.expression[1, 3])),
            },
        },
    }


def test_squares_are_valid_polygons_at_the_spots_true_place_and_size(result, tmp_path):
    collection = geojson(result, tmp_path / "a.geojson")
    squares = [shapely.geometry.shape(feature["geometry"]) for feature in collection["features"]]
    assert all(square.is_valid and square.exterior.is_ccw and square.area == 100**2 for square in squares)
    valid = result.status == 0
    np.testing.assert_array_equal([(s.centroid.x, s.centroid.y) for s in squares], result.spots.centers[valid])
    # Neighbours of a grid meet and do not overlap.
    assert shapely.union_all(squares).area == 79 * 100**2
    measured = [list(feature["properties"]["measurements"].values()) for feature in collection["features"]]
    np.testing.assert_array_equal(np.array(measured, np.float32), result.expression[valid])


def test_equal_results_give_equal_geojson_and_names_are_kept(result, tmp_path):
    names = ('"quoted"\n', "</script>", "Präparat α", *result.spots.names[3:])
    result = replace(result, spots=replace(result.spots, names=names), engine=replace(ENGINE, trained=True))
    read = [geojson(result, tmp_path / name, ["DDX5"]) for name in ("a", "b")]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [f["properties"]["name"] for f in read[0]["features"][:3]] == list(names[:3])
    assert read[0]["features"][0]["properties"]["classification"]["name"] == "M2OST spot"
    assert geojson(empty(result), tmp_path / "c")["features"] == []


def test_a_gene_that_is_not_in_the_panel_is_named(result):
    with pytest.raises(InputError, match="panel of slide: NOPE"):
        writers(ALL, result, {}, ["DDX5", "NOPE"])


@quiet
def test_spatialdata_opens_with_elements_in_level0_pixels(result, tmp_path):
    import spatialdata
    from spatialdata.transformations import get_transformation

    thumbnail = np.random.default_rng(0).integers(0, 256, (250, 400, 3), np.uint8)  # not to scale: x by 5, y by 6
    result = replace(result, slide=replace(result.slide, thumbnail=thumbnail))
    write_result(result, metadata(result), (), tmp_path, writers(Exports(spatialdata=True), result, metadata(result)))
    read = spatialdata.read_zarr(tmp_path / "slide.zarr")
    assert read.coordinate_systems == ["global"]

    shapes = spatialdata.transform(read["spots"], to_coordinate_system="global")
    assert list(shapes.index) == list(result.spots.names)
    np.testing.assert_array_equal(shapely.get_coordinates(shapes.geometry), result.spots.centers)
    assert (shapes.radius == 50).all()

    image = read["thumbnail"]
    np.testing.assert_array_equal(np.moveaxis(image.to_numpy(), 0, 2), thumbnail)
    matrix = get_transformation(image, "global").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_array_equal(matrix @ [400, 250, 1], [*result.slide.size, 1])

    table = read["table"]
    _, joined = spatialdata.join_spatialelement_table(sdata=read, spatial_element_names="spots", table_name="table")
    assert list(joined.obs_names) == list(result.spots.names)
    np.testing.assert_array_equal(table.X, result.expression)
    assert table.obs["status"].value_counts().to_dict() == {"OK": 79, "OUTSIDE_SLIDE": 1}
    assert table.uns["m2ost"]["release_sha256"] == ENGINE.release_sha256


@quiet
def test_a_slide_without_spots_has_all_exports_too(result, tmp_path):
    import spatialdata

    result = empty(result)
    write_result(result, metadata(result), (), tmp_path, writers(ALL, result, metadata(result)))
    assert list(spatialdata.read_zarr(tmp_path / "slide.zarr").images) == ["thumbnail"]
    assert "No spots" in (tmp_path / "slide.report.html").read_text(encoding="utf-8")
    assert len(read_stored(tmp_path / "slide.h5ad")[0].spots) == 0


def test_without_spatialdata_the_extra_is_named_before_any_work(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    monkeypatch.setattr("m2ost_client.exports.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install .*\[spatialdata\]"):
        report(tmp_path, ALL)
    assert not list(tmp_path.iterdir())


def test_a_result_read_back_is_the_result(result, tmp_path):
    status = result.status.copy()
    status[5] = 99
    result = replace(result, status=status)
    facts = metadata(result)
    write_result(result, facts, (), tmp_path)
    read, found = read_stored(tmp_path / "slide.h5ad")
    assert read.engine == replace(result.engine, onnx_sha256="")
    assert read.slide.facts() == result.slide.facts()
    assert (read.spots.names, read.spots.source) == (result.spots.names, result.spots.source)
    assert read.spot_diameter_px == result.spot_diameter_px
    for attribute in ("expression", "status"):
        np.testing.assert_array_equal(getattr(read, attribute), getattr(result, attribute))
    np.testing.assert_array_equal(read.slide.thumbnail, result.slide.thumbnail)
    assert found["spots"]["by_status"] == {"OK": 78, "OUTSIDE_SLIDE": 1, "status 99": 1}
    # From the table alone come the same bytes as from the run.
    for one, name in ((result, "a"), (read, "b")):
        write_geojson(one, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_no_result_is_named(result, tmp_path):
    other, half = tmp_path / "other.h5ad", tmp_path / "half.h5ad"
    adata = to_anndata(result, {})
    del adata.uns["m2ost"]
    adata.write_h5ad(other)
    half.write_bytes(other.read_bytes()[:5000])
    for path in (other, half, tmp_path / "absent.h5ad"):
        with pytest.raises(InputError, match=rf"{path.name}: not a result of `m2ost predict`"):
            read_stored(path)


@quiet
def test_exports_of_an_earlier_run_go_and_a_folder_is_replaced_whole(result, tmp_path):
    write_result(result, metadata(result), (), tmp_path, writers(ALL, result, metadata(result)))
    (tmp_path / "slide.zarr" / "of the first run").touch()
    (tmp_path / "slide.notes.geojson").touch()
    write_result(result, metadata(result), (), tmp_path, writers(Exports(spatialdata=True), result, metadata(result)))
    assert not (tmp_path / "slide.zarr" / "of the first run").exists()
    assert {p.name for p in tmp_path.iterdir()} == {
        *("slide.h5ad", "slide.json", "slide.pca.png", "slide.zarr", "slide.notes.geojson")
    }
    write_result(result, metadata(result), (), tmp_path)
    assert not (tmp_path / "slide.zarr").exists()


def test_an_export_that_cannot_be_written_leaves_everything_as_it_was(result, tmp_path):
    write_result(result, metadata(result), (), tmp_path)
    export_stored(tmp_path / "slide.h5ad", Exports(geojson=True))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"exports of slide cannot be written .*No space left"):
        add_exports(
            "slide", {"slide.report.html": lambda path: path.write_text("whole"), "slide.geojson": fail}, tmp_path
        )
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_exports_made_later_are_of_the_record(result, tmp_path):
    write_result(result, metadata(result, run=1), (), tmp_path)
    export_stored(tmp_path / "slide.h5ad", Exports(geojson=True))
    export_stored(tmp_path / "slide.h5ad", Exports(report=True))
    facts = json.loads((tmp_path / "slide.json").read_text(encoding="utf-8"))
    assert facts["exports"] == ["slide.geojson", "slide.report.html"]
    assert facts["run"] == 1
    write_result(result, metadata(result), (), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"slide.h5ad", "slide.json", "slide.pca.png"}


def test_the_command_reports_a_folder_and_names_what_it_cannot_read(result, tmp_path):
    (tmp_path / "nested").mkdir()
    write_result(result, metadata(result), (), tmp_path)
    write_result(replace(result, name="index"), metadata(result), (), tmp_path / "nested")
    (tmp_path / "broken.h5ad").write_text("no HDF5")
    (tmp_path / "failures.csv").write_text('slide,reason\n"lost, one.svs",no such file\n', encoding="utf-8")
    assert [p.name for p in find_results(tmp_path)] == ["broken.h5ad", "index.h5ad", "slide.h5ad"]
    ran = CliRunner().invoke(app, ["report", str(tmp_path), "--failures", str(tmp_path / "failures.csv")])
    assert ran.exit_code == 3, ran.output
    assert "broken: " in ran.output
    assert "predict the slide again" in ran.output
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for said in ('"nested/index.report.html"', '"slide.report.html"', "lost, one.svs", "no such file", "broken"):
        assert said in page
    assert (tmp_path / "nested" / "index.report.html").exists()
    assert not list(tmp_path.glob(".m2ost-*"))


def test_the_command_reports_one_result(result, tmp_path):
    write_result(result, metadata(result), (), tmp_path)
    ran = CliRunner().invoke(app, ["report", str(tmp_path / "slide.h5ad"), "--geojson", "--map", "FN1"])
    assert ran.exit_code == 0, ran.output
    features = json.loads((tmp_path / "slide.geojson").read_text(encoding="utf-8"))["features"]
    assert list(features[0]["properties"]["measurements"]) == ["FN1"]
    assert not (tmp_path / "index.html").exists()


def test_a_list_of_failures_needs_its_columns(tmp_path):
    path = tmp_path / "failures.csv"
    path.write_text("slide,why\na,b\n", encoding="utf-8")
    with pytest.raises(InputError, match="columns slide,reason"):
        read_failures(path)
    path.write_text("﻿slide,reason\na,b\n", encoding="utf-8")
    assert read_failures(path) == [Failure(slide="a", reason="b")]
    with pytest.raises(InputError, match="no such file or folder"):
        report(Path(tmp_path, "absent"), Exports())


def test_a_status_that_only_a_newer_client_knows_is_counted(result, tmp_path):
    status = np.where(result.status == RowStatus.OK, 0, 99).astype(np.int32)
    assert geojson(replace(result, status=status), tmp_path / "a")["m2ost"]["left_out"] == {"status 99": 1}
