"""A result's files: what they hold, and that they are complete, of one run, and the caller's own."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
from m2ost_client import maps
from m2ost_client.errors import OutputError
from m2ost_client.files import check_writable, write_result
from PIL import Image

from tests.support.releases import ENGINE


def metadata(**more):
    return {"timings": {}, **more}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_table_is_what_scanpy_and_squidpy_expect(result, tmp_path):
    facts = metadata(release_sha256="c" * 64, nothing=None, nested={"mpp": 0.5, "none": None}, list=[1, 2])
    write_result(result, facts, (), tmp_path)
    read = anndata.read_h5ad(tmp_path / "slide.h5ad")
    assert read.shape == (80, 4)
    assert list(read.var_names) == list(ENGINE.genes)
    np.testing.assert_array_equal(read.obsm["spatial"], result.spots.centers)
    np.testing.assert_array_equal(read.X, result.expression)
    assert read.obs["status"].value_counts().to_dict() == {"OK": 79, "OUTSIDE_SLIDE": 1}
    assert read.uns["m2ost"]["release_sha256"] == "c" * 64
    assert "nothing" not in read.uns["m2ost"]
    spatial = read.uns["spatial"]["slide"]
    assert spatial["scalefactors"]["tissue_hires_scalef"] == 0.2
    assert spatial["scalefactors"]["spot_diameter_fullres"] == 100


def test_scanpy_plots_the_file_as_it_is(result, tmp_path):
    write_result(result, metadata(), (), tmp_path)
    script = (
        "import matplotlib; matplotlib.use('Agg'); import scanpy as sc, sys;"
        "a = sc.read_h5ad(sys.argv[1]); (axes,) = sc.pl.spatial(a, color='DDX5', show=False);"
        "axes.figure.savefig(sys.argv[2])"
    )
    figure = tmp_path / "figure.png"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, tmp_path / "slide.h5ad", figure], check=True)
    assert Image.open(figure).getextrema() != ((255, 255),) * 4


def test_the_table_comes_last(result, tmp_path):
    facts = metadata()
    files = write_result(result, facts, ["B2M"], tmp_path)
    assert [file.name for file in files] == ["slide.pca.png", "slide.B2M.png", "slide.json", "slide.h5ad"]
    assert json.loads((tmp_path / "slide.json").read_text(encoding="utf-8")) == facts
    assert facts["maps"] == ["slide.pca.png", "slide.B2M.png"]
    assert facts["timings"]["write_s"] > 0


def test_a_gene_with_a_slash_has_a_map(result, tmp_path):
    genes = ("HLA-A/B", "../B2M", "100%", "α")
    result = replace(result, engine=replace(ENGINE, genes=genes))
    out = tmp_path / "out"
    out.mkdir()
    write_result(result, metadata(), genes, out)
    drawn = [f"slide.{quoted}.png" for quoted in ("HLA-A%2FB", "..%2FB2M", "100%25", "%CE%B1", "pca")]
    assert names(out) == sorted([*drawn, "slide.h5ad", "slide.json"])
    assert names(tmp_path) == ["out"]


def test_maps_of_an_earlier_run_go_and_those_of_other_slides_stay(result, tmp_path):
    write_result(result, metadata(), ["DDX5", "B2M"], tmp_path)
    write_result(replace(result, name="slide.b"), metadata(), ["DDX5"], tmp_path)
    (tmp_path / "slide.notes.png").touch()
    write_result(result, metadata(), ["FN1", "B2M"], tmp_path)
    kept = ["slide.B2M.png", "slide.FN1.png", "slide.pca.png", "slide.json", "slide.h5ad", "slide.notes.png"]
    other = ["slide.b.DDX5.png", "slide.b.pca.png", "slide.b.json", "slide.b.h5ad"]
    assert names(tmp_path) == sorted(kept + other)
    empty = replace(result, spots=replace(result.spots, centers=np.zeros((0, 2)), names=()))
    empty = replace(empty, expression=result.expression[:0], status=result.status[:0])
    write_result(empty, metadata(), ["FN1"], tmp_path)
    assert names(tmp_path) == sorted(["slide.json", "slide.h5ad", "slide.notes.png", *other])


def test_a_result_that_cannot_be_written_leaves_the_earlier_one(result, tmp_path, monkeypatch):
    write_result(result, metadata(run=1), ["DDX5"], tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(result, gene, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(maps, "draw_gene", fail)
    with pytest.raises(OutputError, match=r"the result of slide cannot be written .*No space left"):
        write_result(result, metadata(run=2), ["B2M"], tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_killed_between_two_files_leaves_no_table(result, tmp_path, monkeypatch):
    write_result(result, metadata(run=1), (), tmp_path)
    replace_file = os.replace

    def die_at_the_json(source, target):
        if target.suffix == ".json":
            raise KeyboardInterrupt
        return replace_file(source, target)

    monkeypatch.setattr(os, "replace", die_at_the_json)
    with pytest.raises(KeyboardInterrupt):
        write_result(result, metadata(run=2), (), tmp_path)
    assert names(tmp_path) == ["slide.json", "slide.pca.png"]


def test_json_holds_no_nan(result, tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(result, metadata(mpp=float("nan")), (), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0o022, 0o644)])
def test_who_may_read_a_result_is_the_callers_choice(result, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files = write_result(result, metadata(), ["DDX5"], tmp_path)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in files} == {mode}


def test_names_and_facts_beyond_ascii_in_any_locale(result, tmp_path):
    script = f"""
import pickle
from pathlib import Path
from m2ost_client.files import write_result
result = pickle.loads(Path({str(tmp_path / "result.pickle")!r}).read_bytes())
write_result(result, {{"timings": {{}}, "slide": "Pr\\u00e4parat"}}, (), Path({str(tmp_path / "out")!r}))
"""
    (tmp_path / "out").mkdir()
    (tmp_path / "result.pickle").write_bytes(pickle.dumps(result))
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", script], check=True, env=ascii_only)
    assert json.loads((tmp_path / "out" / "slide.json").read_text(encoding="utf-8"))["slide"] == "Präparat"


def test_a_full_disk_is_an_error_that_leaves_nothing(result, tmp_path):
    # A limit on file size stands in for a full disk: the write of the real file fails half-way.
    script = f"""
import resource, signal, pickle, sys
from pathlib import Path
from m2ost_client.errors import OutputError
from m2ost_client.files import write_result
result = pickle.loads(Path({str(tmp_path / "result.pickle")!r}).read_bytes())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_result(result, {{"timings": {{}}}}, (), Path({str(tmp_path / "out")!r}))
except OutputError as error:
    sys.exit(0 if "free space" in str(error) else str(error))
sys.exit("written?")
"""
    (tmp_path / "out").mkdir()
    (tmp_path / "result.pickle").write_bytes(pickle.dumps(result))
    subprocess.run([sys.executable, "-c", script], check=True)
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/out")):
        with pytest.raises(OutputError, match="choose another --out"):
            check_writable(folder)
