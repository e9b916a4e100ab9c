"""The client's parts that need no server: logs, installation, options, maps, version skew."""

import asyncio
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import m2ost_preprocess
import numpy as np
import pytest
from m2ost_client import maps
from m2ost_client.answers import read_slide_info
from m2ost_client.errors import InputError, ServerStartError
from m2ost_client.options import view_scale
from m2ost_client.predict import result_name
from m2ost_client.server import installation, logs
from m2ost_client.stream import SpotStream, StreamOptions
from m2ost_client.tables import to_anndata
from m2ost_contract import ViewGeometry
from m2ost_preprocess.decoder import Decoder
from PIL import Image

from tests.support.releases import ENGINE


def test_triton_lines_become_objects():
    line = 'I1123 19:32:05.023168 3259 model_lifecycle.cc:472] "loading: m2ost:1"\n'
    record = logs.parse_line(line)
    assert (record["level"], record["source"], record["message"]) == (
        "info",
        "model_lifecycle.cc:472",
        "loading: m2ost:1",
    )
    assert record["time"].endswith("-11-23T19:32:05.023+00:00")


def test_our_models_json_is_merged_in_and_probes_are_quiet():
    inner = json.dumps({"event": "tiled", "request_id": "r-1", "slides": ['a"b.svs']})
    record = logs.parse_line(f"W1123 19:32:05.023168 3259 model.py:84] {json.dumps(inner)}")
    assert (record["event"], record["request_id"], record["slides"]) == ("tiled", "r-1", ['a"b.svs'])
    assert record["level"] == "warning"
    probe = json.dumps(json.dumps({"event": "tiled", "request_id": "p-1"}))
    line = f"W1123 19:32:05.023168 3259 model.py:84] {probe}"
    assert [logs.parse_line(line, known)["level"] for known in ("p-1", "p-2", "")] == ["debug", "warning", "warning"]


@pytest.mark.parametrize("line", ["", "\n", "+----+", "| a | b |", "I1123 19:32:05.023168 3259 server.cc:604] "])
def test_tables_are_dropped(line):
    assert logs.parse_line(line) is None


def test_other_output_is_kept():
    assert logs.parse_line("free(): invalid pointer")["message"] == "free(): invalid pointer"
    quoted = 'I1123 19:32:05.023168 3259 x.cc:1] "not \\q json"'
    assert logs.parse_line(quoted)["message"] == "not \\q json"


@pytest.mark.parametrize("found", ["2.34", "2.31", "", "musl"])
def test_an_old_c_library_is_a_clear_error(found):
    with pytest.raises(ServerStartError, match=r"2\.35 or later"):
        installation.check_glibc(found)


@pytest.mark.parametrize("found", ["2.35", "2.36", "3.0"])
def test_a_newer_c_library_passes(found):
    installation.check_glibc(found)


def fake_environment(folder: Path, facts: dict) -> Path:
    """An environment whose Python answers with ``facts``: the real one here has a shared library."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f"#!{sys.executable}\nprint('''{json.dumps(facts)}''')\n")
    python.chmod(0o755)
    root = Path(facts["purelib"]) / "pytriton" / "tritonserver"
    for part in ("bin/tritonserver", "python_backend_stubs/3.11/triton_python_backend_stub"):
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        (root / part).touch()
    return folder


def test_a_python_without_a_shared_library_is_a_clear_error(tmp_path):
    facts = {"version": "3.11", "libdir": "/nowhere", "library": "libpython3.11.so.1.0", "shared": False}
    folder = fake_environment(tmp_path / ".triton", {**facts, "purelib": str(tmp_path / "site")})
    with pytest.raises(ServerStartError, match=r"no shared library .*--enable-shared"):
        installation.from_environment(folder)


def test_an_environment_of_another_python_is_a_clear_error(tmp_path):
    facts = {"version": "3.13", "libdir": "/nowhere", "library": "x", "shared": True, "purelib": str(tmp_path / "site")}
    folder = fake_environment(tmp_path / ".triton", facts)
    with pytest.raises(ServerStartError, match=r"Python 3\.13; the embedded server needs Python 3\.11"):
        installation.from_environment(folder)


def test_an_environment_whose_models_could_not_import_ours_is_a_clear_error(tmp_path, monkeypatch):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # an interpreter without installed packages
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(Path(m2ost_preprocess.__file__).parents[1]))  # which no model's process sees
    with pytest.raises(ServerStartError, match=r"cannot import m2ost_preprocess there .*ModuleNotFoundError"):
        installation.from_environment(tmp_path)


def test_no_server_anywhere_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(installation.ENV_SERVER, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "elsewhere" / ".venv"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerStartError, match=r"make \.triton"):
        installation.find_installation()
    monkeypatch.setenv(installation.ENV_SERVER, str(tmp_path / "absent"))
    with pytest.raises(ServerStartError, match="create the environment anew"):
        installation.find_installation()


def clean_search(tmp_path, monkeypatch):
    """No server environment anywhere but below ``tmp_path``; the working folder is ``tmp_path / "here"``."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv(installation.ENV_SERVER, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "checkout" / ".venv"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return here


def environment_that_tells(folder):
    """A server environment whose Python leaves a mark when it is run."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n: > {folder}/was-run\nexit 1\n")
    python.chmod(0o755)
    folder.chmod(0o755)
    return folder / "was-run"


def test_a_server_environment_beside_the_clients_or_in_the_working_folder_is_found(tmp_path, monkeypatch):
    here = clean_search(tmp_path, monkeypatch)
    mark = environment_that_tells(here / ".triton")
    with pytest.raises(ServerStartError, match="its Python does not run"):
        installation.find_installation()
    assert mark.exists()
    beside = environment_that_tells(tmp_path / "checkout" / ".triton")
    (tmp_path / "checkout" / ".triton").chmod(0o775)  # as `make` creates it under umask 002
    with pytest.raises(ServerStartError, match="its Python does not run"):
        installation.find_installation()
    assert beside.exists()


def test_no_python_is_run_that_someone_else_could_have_put_there(tmp_path, monkeypatch):
    here = clean_search(tmp_path, monkeypatch)
    marks = [environment_that_tells(folder / ".triton") for folder in (here, tmp_path)]
    for mode in (0o775, 0o757):
        (here / ".triton").chmod(mode)
        with pytest.raises(ServerStartError, match="only you can write to"):
            installation.find_installation()
    (here / ".triton").chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ServerStartError, match="no tritonserver"):
        installation.find_installation()
    assert not any(mark.exists() for mark in marks)


@pytest.mark.parametrize("options", [{"batch_rows": 0}, {"batch_rows": 257}, {"window": 0}, {"deadline_s": 0}])
def test_impossible_stream_options(options):
    with pytest.raises(ValueError, match="must be"):
        StreamOptions(**options)


def test_pca_colours():
    random = np.random.default_rng(0)
    axis = np.linspace(0, 1, 50)
    expression = np.outer(axis, random.normal(size=20)) + 1e-6 * random.normal(size=(50, 20))
    colours = maps.pca_rgb(expression)
    assert colours.shape == (50, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    order = np.argsort(colours[5:-5, 0])
    assert (np.diff(order) > 0).all() or (np.diff(order) < 0).all()
    np.testing.assert_array_equal(maps.pca_rgb(expression), colours)
    for few in (np.zeros((0, 4)), np.zeros((1, 4)), np.ones((5, 4))):
        assert maps.pca_rgb(few).tolist() == [[0.5] * 3] * len(few)


def inside_spots(result, margin_px=0.0):
    """Which pixels of the overview lie in the square of a spot with a value, ``margin_px`` within its edge."""
    height, width = result.slide.thumbnail.shape[:2]
    scale = result.slide.size[0] / width
    x, y = (np.arange(width) + 0.5) * scale, (np.arange(height) + 0.5) * scale
    half = result.spot_diameter_px / 2 - margin_px
    mask = np.zeros((height, width), bool)
    for center_x, center_y in result.spots.centers[result.status == 0]:
        mask |= (np.abs(y - center_y) < half)[:, None] & (np.abs(x - center_x) < half)
    return mask


def panels(path, result):
    """The overviews in a map, cut out of the figure by their grey and resized to the thumbnail."""
    image = Image.open(path).convert("RGB")
    pixels = np.asarray(image).astype(int)
    page = (pixels == 255).all(axis=2)
    columns = np.flatnonzero(~page[page.shape[0] // 2])
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    height, width = result.slide.thumbnail.shape[:2]
    for group in (g for g in groups if len(g) > page.shape[1] / 4):
        rows = np.flatnonzero(~page[:, group[len(group) // 2]])
        rows = max(np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1), key=len)
        box = (group[0], rows[0], group[-1] + 1, rows[-1] + 1)
        yield np.asarray(image.crop(box).resize((width, height), Image.Resampling.NEAREST)).astype(int)


def coloured(pixels):
    return np.ptp(pixels, axis=2) > 20


def test_maps_are_drawn_where_the_spots_are(result, tmp_path):
    maps.draw_gene(result, "DDX5", tmp_path / "gene.png")
    maps.draw_pca(result, tmp_path / "pca.png")
    (gene,) = panels(tmp_path / "gene.png", result)
    slide, pca = panels(tmp_path / "pca.png", result)
    inside, outside = inside_spots(result, margin_px=15), ~inside_spots(result, margin_px=-15)
    for drawn in (gene, pca):
        assert coloured(drawn)[inside].mean() > 0.9
        assert not coloured(drawn)[outside].any()
    assert not coloured(slide).any()
    with pytest.raises(KeyError):
        maps.draw_gene(result, "TP53", tmp_path / "no.png")


def test_maps_without_resolution_or_values(result, tmp_path):
    unknown = replace(result, slide=replace(result.slide, mpp=None, mpp_source=None))
    maps.draw_gene(unknown, "B2M", tmp_path / "a.png")
    (drawn,) = panels(tmp_path / "a.png", result)
    assert coloured(drawn)[inside_spots(result, margin_px=15)].mean() > 0.9
    none = replace(result, status=np.ones_like(result.status), expression=np.full_like(result.expression, np.nan))
    maps.draw_pca(none, tmp_path / "b.png")
    maps.draw_gene(none, "B2M", tmp_path / "c.png")
    for name in ("b.png", "c.png"):
        for drawn in panels(tmp_path / name, result):
            assert not coloured(drawn).any()


def test_untrained_results_say_so(result):
    assert "UNTRAINED" in result.title
    assert "UNTRAINED" not in replace(result, engine=replace(ENGINE, trained=True)).title


def test_view_scale(result):
    assert view_scale(None, result.slide, ENGINE) == 1.0
    assert view_scale(1.0, result.slide, ENGINE) == 2.0
    assert view_scale("model", result.slide, ENGINE) == pytest.approx(1.4)
    with pytest.raises(InputError, match="--mpp"):
        view_scale(1.0, replace(result.slide, mpp=None), ENGINE)
    with pytest.raises(InputError, match="--view-mpp"):
        view_scale("model", result.slide, replace(ENGINE, mpp=None))


@pytest.mark.parametrize("view_mpp", [0, -0.5, math.nan, math.inf, 0.03, 4.1, 1000])
def test_a_view_scale_that_no_row_could_have_is_refused_at_once(result, view_mpp):
    with pytest.raises(InputError, match=r"--view-mpp must lie in 0\.03125 to 4"):
        view_scale(view_mpp, result.slide, ENGINE)


def test_results_are_named_by_what_the_caller_typed():
    for typed, name in (("a/sample1.svs", "sample1"), ("~/b.svs", "b"), ("wsi/x.y.svs", "x.y"), ("a/dicom/", "dicom")):
        assert result_name(typed) == name
    assert result_name(".") == Path.cwd().stem


def test_a_newer_servers_facts_and_statuses_are_no_errors(result):
    facts = {**result.slide.facts(), "scanner": "of a later version"}
    arrays = {
        "INFO": np.array([json.dumps(facts).encode()], object),
        "CENTER": np.array([[3, 4]], np.int32),
        "SPOT_NAME": np.array([b"0x0"], object),
        "THUMBNAIL": result.slide.thumbnail,
    }
    slide = read_slide_info(SimpleNamespace(as_numpy=arrays.get))
    assert (slide.size, slide.names, slide.fingerprint) == ((2000, 1500), ("0x0",), "f")
    result.status[5] = 7
    assert result.counts_by_status() == {"OK": 78, "OUTSIDE_SLIDE": 1, "status 7": 1}
    assert to_anndata(result, {}).obs["status"].iloc[5] == "status 7"


def test_a_decoder_for_other_views_is_refused_before_it_is_asked(svs):
    stream = SpotStream("127.0.0.1:9")
    stream._connection._info = ENGINE

    async def score(decoder):
        return [batch async for batch in stream.predict_local(svs, [(1, 1)], decoder)]

    with (
        Decoder(ViewGeometry(size_px=112)) as decoder,
        pytest.raises(ValueError, match=r"size_px=224.*the decoder cuts .*size_px=112"),
    ):
        asyncio.run(score(decoder))
