"""The client's parts that need no server: logs, installation, window, results, maps."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
from m2ost_client import installation, logs, maps
from m2ost_client.errors import OutputError, RequestRejected, ServerStartError
from m2ost_client.predict import view_scale
from m2ost_client.results import SlideResult, check_writable, write_complete, write_h5ad
from m2ost_client.stream import StreamOptions, _Window
from m2ost_preprocess.contract import EngineInfo, RowStatus, ViewGeometry
from m2ost_preprocess.decoder import SlideInfo
from m2ost_preprocess.spots import Spots
from PIL import Image

ENGINE = EngineInfo(
    genes=("DDX5", "B2M", "FN1", "ERBB2"),
    views=ViewGeometry(),
    mpp=0.7,
    target="log1p_cpm_panel",
    trained=False,
    precision="fp32",
    checkpoint_sha256="a" * 64,
    onnx_sha256="b" * 64,
    release_sha256="c" * 64,
)


@pytest.fixture
def result():
    slide = SlideInfo(
        size=(2000, 1500),
        mpp=0.5,
        mpp_source="aperio.MPP",
        vendor="aperio",
        reader="cucim",
        reader_reason="",
        note="",
        fingerprint="f",
        tissue_fraction=0.5,
        pitch_px=100.0,
        centers=np.zeros((0, 2)),
        names=(),
        thumbnail=np.full((300, 400, 3), 230, np.uint8),
    )
    centers = np.stack(np.meshgrid(np.arange(50, 1000, 100), np.arange(50, 800, 100)), -1).reshape(-1, 2).astype(float)
    expression = np.random.default_rng(0).normal(size=(len(centers), 4)).astype(np.float32)
    status = np.zeros(len(centers), np.int32)
    status[3], expression[3] = RowStatus.OUTSIDE_SLIDE, np.nan
    spots = Spots(centers, tuple(f"s{i}" for i in range(len(centers))), 100.0, "grid")
    return SlideResult("slide", slide, ENGINE, spots, expression, status)


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
    probe = json.dumps({"event": "tiled", "request_id": "m2ost-probe"})
    assert logs.parse_line(f"W1123 19:32:05.023168 3259 model.py:84] {json.dumps(probe)}")["level"] == "debug"


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


def test_the_window_halves_on_trouble_and_recovers_with_success():
    window = _Window(8)
    window.shrink()
    window.shrink()
    assert window.size == 2
    for _ in range(2):
        window.success()
    assert window.size == 3
    for _ in range(100):
        window.success()
    assert window.size == 8
    for _ in range(9):
        window.shrink()
    assert window.size == 1


@pytest.mark.parametrize("options", [{"batch_rows": 0}, {"batch_rows": 257}, {"window": 0}, {"deadline_s": 0}])
def test_impossible_stream_options(options):
    with pytest.raises(ValueError, match="must be"):
        StreamOptions(**options)


def test_the_table_is_what_scanpy_and_squidpy_expect(result, tmp_path):
    metadata = {"release_sha256": "c" * 64, "nothing": None, "nested": {"mpp": 0.5, "none": None}, "list": [1, 2]}
    write_h5ad(result, metadata, tmp_path / "slide.h5ad")
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
    write_h5ad(result, {}, tmp_path / "slide.h5ad")
    script = (
        "import matplotlib; matplotlib.use('Agg'); import scanpy as sc, sys;"
        "a = sc.read_h5ad(sys.argv[1]); (axes,) = sc.pl.spatial(a, color='DDX5', show=False);"
        "axes.figure.savefig(sys.argv[2])"
    )
    figure = tmp_path / "figure.png"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, tmp_path / "slide.h5ad", figure], check=True)
    assert Image.open(figure).getextrema() != ((255, 255),) * 4


def test_a_file_under_its_final_name_is_complete(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")

    def fail(scratch):
        scratch.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"a\.json: cannot be written .*No space left"):
        write_complete(path, fail)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_an_error_that_leaves_nothing(result, tmp_path):
    # A limit on file size stands in for a full disk: the write of the real file fails half-way.
    script = f"""
import resource, signal, pickle, sys
from pathlib import Path
from m2ost_client.errors import OutputError
from m2ost_client.results import write_h5ad
result = pickle.loads(Path({str(tmp_path / "result.pickle")!r}).read_bytes())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_h5ad(result, {{}}, Path({str(tmp_path / "out" / "slide.h5ad")!r}))
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


def test_maps_are_drawn_where_the_spots_are(result, tmp_path):
    maps.draw_gene(result, "DDX5", tmp_path / "gene.png")
    maps.draw_pca(result, tmp_path / "pca.png")
    for name in ("gene.png", "pca.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        assert (pixels.max(axis=2) - pixels.min(axis=2) > 60).mean() > 0.05, "no coloured spots"
    with pytest.raises(KeyError):
        maps.draw_gene(result, "TP53", tmp_path / "no.png")


def test_maps_without_resolution_or_values(result, tmp_path):
    unknown = replace(result, slide=replace(result.slide, mpp=None, mpp_source=None))
    maps.draw_gene(unknown, "B2M", tmp_path / "a.png")
    none = replace(result, status=np.ones_like(result.status), expression=np.full_like(result.expression, np.nan))
    maps.draw_pca(none, tmp_path / "b.png")
    maps.draw_gene(none, "B2M", tmp_path / "c.png")
    assert all((tmp_path / f"{n}.png").stat().st_size > 5000 for n in "abc")


def test_untrained_results_say_so(result):
    assert "UNTRAINED" in result.title
    assert "UNTRAINED" not in replace(result, engine=replace(ENGINE, trained=True)).title


def test_view_scale(result):
    assert view_scale(None, result.slide, ENGINE) == 1.0
    assert view_scale(1.0, result.slide, ENGINE) == 2.0
    assert view_scale("model", result.slide, ENGINE) == pytest.approx(1.4)
    with pytest.raises(RequestRejected, match="--mpp"):
        view_scale(1.0, replace(result.slide, mpp=None), ENGINE)
    with pytest.raises(RequestRejected, match="--view-mpp"):
        view_scale("model", result.slide, replace(ENGINE, mpp=None))
