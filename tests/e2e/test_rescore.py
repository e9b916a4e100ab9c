"""An archive through a real Triton: what comes out, and that it comes out the same whatever happened on the way."""

import json
import random
import shutil
import sqlite3
import time
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from m2ost_client import InputError
from m2ost_client.archive import Settings, SlideRow, read_status
from m2ost_client.exports import Exports
from PIL import Image

from .archives import MPP, rescore, rescore_apart, results
from .releases import by_pytorch

READ = ("slide_info", "slide_fingerprint")


@pytest.fixture
def slides(archive_slides):
    return archive_slides


@pytest.fixture
def server(archive_server):
    return archive_server


def adata_of(out, slide_id):
    return anndata.read_h5ad(out / "results" / f"{slide_id}.h5ad")


def test_every_slide_has_its_result_and_the_table_tells_of_it(undisturbed, slides, narrow_release):
    out = undisturbed
    folder, rows = slides
    table = pd.read_parquet(out / "archive.parquet")
    assert list(table.slide_id) == [row.slide_id for row in rows]
    assert set(table.state) == {"done"}
    assert set(table.mpp_source) == {"given"}
    by_id = table.set_index("slide_id")
    for name in ("s00", "large", "blank"):
        adata = anndata.read_h5ad(out / by_id.result[name])
        assert len(adata) == by_id.spots[name]
        assert adata.uns["m2ost"]["slide_id"] == name
        if len(adata):
            expected = by_pytorch(narrow_release, folder / f"{name}.png", adata.obsm["spatial"])
            np.testing.assert_allclose(adata.X, expected, rtol=0, atol=1e-4)
    assert by_id.spots["blank"] == 0
    assert adata_of(out, "large").uns["m2ost"]["spots"]["source"] == "grid, pitch 60 µm"
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["done"], summary["failed"], summary["left"]) == (len(rows), [], 0)
    assert summary["spots"] == table.spots.sum() == summary["run"]["spots"]
    assert summary["mpp_sources"] == {"given": len(rows)}
    assert summary["run"]["spots_per_s"] > 0
    status = read_status(out)
    assert (status.complete, status.running, status.last_run["ended"]) == (True, False, "done")


def test_the_same_run_again_does_nothing_and_leaves_the_same(undisturbed, slides, server, archive_log, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    archive_log.clear()
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in (out / "results").iterdir()}
    report = rescore(slides[1], out, [server])
    assert (report.summary["of_them_skipped"], report.summary["run"]["spots"]) == (len(slides[1]), 0)
    assert {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in (out / "results").iterdir()} == before
    rescore([replace(slides[1][1], slide_id="another")], tmp_path / "more", [server])
    deadline = time.monotonic() + 10
    while not any(record.get("event") == "slide_info" for record in list(archive_log)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    events = [record["event"] for record in list(archive_log) if record.get("event") in READ]
    assert events == ["slide_fingerprint"] * len(slides[1]) + ["slide_info"], "no pixel is decoded to skip a slide"


def test_values_do_not_depend_on_how_spots_are_joined_or_sent(undisturbed, slides, server, tmp_path):
    folder, rows = slides
    rows = [row for row in rows if row.slide_id in ("s00", "large")]
    local = [replace(row, path=str(folder / row.path.removeprefix("archive/"))) for row in rows]
    rescore(local, tmp_path / "sent", [server], send_pixels=True, batch_rows=32)
    rescore(rows, tmp_path / "ones", [server], batch_rows=1, window=8)
    for name in ("s00", "large"):
        for other in ("sent", "ones"):
            np.testing.assert_array_equal(adata_of(tmp_path / other, name).X, adata_of(undisturbed, name).X)


def test_kill_9_at_eight_random_moments(undisturbed, slides, server, tmp_path):
    out, moments = tmp_path / "out", random.Random(7)
    kills = 0
    while kills < 8:
        process = rescore_apart(slides[1], out, server, spots_in_flight=64)
        process.join(moments.uniform(0, 0.6))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            (out / "results" / f"s{moments.randrange(5):02d}.h5ad").unlink()  # there is always something to do
    assert rescore(slides[1], out, [server]).complete
    assert results(out) == results(undisturbed)


def drain_at(spots, runs):
    """Ask a run to stop once so many spots are scored."""

    def on_progress(progress):
        if progress.spots >= spots:
            runs[0].drain()

    return {"control": runs.append, "on_progress": on_progress}


def test_a_run_that_was_drained_goes_on_in_the_middle_of_a_slide_and_scores_no_spot_twice(
    undisturbed, slides, server, tmp_path
):
    out = tmp_path / "out"
    rows = sorted(slides[1], key=lambda row: row.slide_id != "large")
    expected = {row.slide_id: len(adata_of(undisturbed, row.slide_id)) for row in rows}
    first = rescore(rows, out, [server], **drain_at(8, []))
    assert first.drained
    assert first.summary["left"] > 0
    status = read_status(out)
    assert 8 <= status.spots_done == first.summary["run"]["spots"] < expected["large"]
    assert status.slides["pending"] == first.summary["left"]
    second = rescore(rows, out, [server])
    assert second.complete
    assert first.summary["run"]["spots"] + second.summary["run"]["spots"] == sum(expected.values())
    one, other = (results(folder) for folder in (out, undisturbed))
    assert {k: v for k, v in one.items() if k != "archive.parquet"} == {
        k: v for k, v in other.items() if k != "archive.parquet"
    }


def test_what_has_changed_is_refused_or_made_anew_and_never_mixed(slides, server, tmp_path):
    folder, out = slides[0], tmp_path / "out"
    (folder / "other.png").write_bytes((folder / "s01.png").read_bytes())
    rows = [slides[1][1], SlideRow("other", "archive/other.png", mpp=MPP)]
    rescore(rows, out, [server])
    before = results(out)

    with pytest.raises(
        InputError,
        match=r"was 100.0, is 90.0\); go back to that to go on, give --rescore-changed",
    ):
        rescore(rows, out, [server], settings=Settings(pitch_um=90.0))
    assert results(out) == before

    (folder / "other.png").write_bytes((folder / "s02.png").read_bytes())
    report = rescore(rows, out, [server])
    (failed,) = report.summary["failed"]
    assert (failed["slide_id"], report.complete) == ("other", False)
    assert "its content has changed" in failed["reason"]
    kept = results(out)
    assert {name for name in kept if kept[name] != before[name]} == {"archive.parquet"}
    (folder / "other.png").write_bytes((folder / "s01.png").read_bytes())
    assert rescore(rows, out, [server]).complete, "its content is back"
    assert results(out) == before

    (folder / "other.png").write_bytes((folder / "s02.png").read_bytes())
    report = rescore(rows, out, [server], rescore_changed=True)
    assert (report.complete, report.summary["of_them_skipped"]) == (True, 1)
    rescore([SlideRow("other", "archive/other.png", mpp=MPP)], tmp_path / "fresh", [server])
    np.testing.assert_array_equal(adata_of(out, "other").X, adata_of(tmp_path / "fresh", "other").X)

    rows[1] = replace(rows[1], mpp=0.6)
    report = rescore(rows, out, [server], settings=Settings(pitch_um=90.0), rescore_changed=True)
    assert (report.complete, report.summary["of_them_skipped"]) == (True, 0)
    table = pd.read_parquet(out / "archive.parquet")
    assert table.mpp.tolist() == [MPP, 0.6]


def test_a_mask_says_where_spots_lie_and_one_that_says_it_twice_costs_its_slide_alone(slides, server, tmp_path):
    half = np.zeros((65, 65), np.uint8)
    half[:, :36] = 255  # 720 px
    Image.fromarray(half).save(tmp_path / "left.png")
    Image.fromarray(np.dstack([np.full_like(half, 255)] * 3 + [half])).save(tmp_path / "alpha.png")
    large = slides[1][0]
    rows = [replace(large, slide_id=name, mask=str(tmp_path / f"{name}.png")) for name in ("left", "alpha")]
    report = rescore(rows, tmp_path / "out", [server])
    (failed,) = report.summary["failed"]
    assert failed["slide_id"] == "alpha"
    assert "transparency over what is not black" in failed["reason"]
    centers = adata_of(tmp_path / "out", "left").obsm["spatial"]
    cells = [60 + 120 * i for i in range(11) if 60 + 120 * i < 1300]  # 60 µm of 0.5 µm/px
    assert {tuple(center) for center in centers.tolist()} == {(x, y) for x in cells if x < 720 for y in cells}


def test_an_archive_of_another_release_is_refused(slides, server, tmp_path):
    rows, out = slides[1][:1], tmp_path / "out"
    rescore(rows, out, [server])
    with sqlite3.connect(out / "state.sqlite") as db:  # as an archive that another release was used for
        value = db.execute("SELECT value FROM archive WHERE name = 'settings'").fetchone()[0]
        other = {**json.loads(value), "release_sha256": "0" * 64}
        db.execute("UPDATE archive SET value = ? WHERE name = 'settings'", (json.dumps(other),))
    with pytest.raises(InputError, match="release_sha256 was 0000"):
        rescore(rows, out, [server])


def test_pages_and_exports_lie_beside_results_and_an_index_names_those_that_failed(slides, server, tmp_path):
    rows = [row for row in slides[1] if row.slide_id in ("s00", "blank")]
    rows.append(SlideRow("gone", "archive/gone.png", mpp=MPP))
    exports = Exports(geojson=True, spatialdata=True, report=True)
    first, second = tmp_path / "a" / "out", tmp_path / "b" / "out"
    for out in (first, second):
        out.parent.mkdir()
        report = rescore(rows, out, [server], exports=exports)
        assert [failed["slide_id"] for failed in report.summary["failed"]] == ["gone"]
    for name in ("s00", "blank"):
        folder = first / "results"
        exported = [f"{name}.geojson", f"{name}.zarr", f"{name}.report.html"]
        assert json.loads((folder / f"{name}.json").read_text())["exports"] == exported
        for file in (f"{name}.h5ad", f"{name}.json", f"{name}.geojson", f"{name}.report.html"):
            assert (folder / file).read_bytes() == (second / "results" / file).read_bytes(), file
        files = [file.relative_to(folder) for file in (folder / f"{name}.zarr").rglob("*") if file.is_file()]
        assert files
        for file in files:
            assert (folder / file).read_bytes() == (second / "results" / file).read_bytes(), file
    index = (first / "index.html").read_text()
    assert index == (second / "index.html").read_text()
    (failed,) = report.summary["failed"]
    for words in ("results/s00.report.html", "results/blank.report.html", '"gone"', failed["reason"]):
        assert words in index

    report = rescore(rows, first, [server], settings=Settings(pitch_um=90.0), rescore_changed=True)
    assert report.summary["done"] == 2
    left = {file.name for file in (first / "results").iterdir()}
    assert left == {"s00.h5ad", "s00.json", "blank.h5ad", "blank.json"}, "files of before are gone with their result"
    assert not (first / "index.html").exists()
