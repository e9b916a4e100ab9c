"""The ``m2ost`` command as a person uses it: what it writes, what it says, and its exit status."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import psutil
import pytest
import torch
from m2ost_client.server.host import SHM
from m2ost_contract import install_command
from m2ost_preprocess.slides.spots import read_spots
from PIL import Image

from tests.support.command import error_of, m2ost

from .releases import by_pytorch
from .servers import heed_ctrl_c, still_running

M2OST = Path(sys.executable).with_name("m2ost")


SLIDE = "wsi/CMU-1-Small-Region.svs"


def predict(slide, release, out, *arguments):
    return m2ost("predict", slide, "--release", release, "--out", out, *arguments)


def predict_apart(slide, release, out, *arguments, **options):
    """The same as a process of its own, as a person starts it."""
    command = [M2OST, "predict", slide, "--release", release, "--out", out, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, **options)
    return done.returncode, done.stdout, done.stderr


def predict_on(server, slide, out, *arguments):
    return m2ost("predict", slide, "--server", server.address, "--out", out, *arguments)


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_a_real_slide_becomes_a_map(narrow_release, svs, tmp_path):
    arguments = ("--pitch-um", 100, "--map", "untrained_003", "--geojson", "--spatialdata", "--report")
    status, output, errors = predict_apart(svs, narrow_release, tmp_path, *arguments)
    assert status == 0, errors
    assert "UNTRAINED" in output
    assert "0.499 µm/px (aperio.MPP)" in output
    stem = "CMU-1-Small-Region"
    made = ("geojson", "h5ad", "json", "pca.png", "report.html", "untrained_003.png", "zarr")
    assert leftovers(tmp_path) == [f"{stem}.{e}" for e in made]
    adata = anndata.read_h5ad(tmp_path / f"{stem}.h5ad")
    np.testing.assert_allclose(adata.X, by_pytorch(narrow_release, svs, adata.obsm["spatial"]), rtol=0, atol=1e-4)
    metadata = json.loads((tmp_path / f"{stem}.json").read_text())
    manifest = json.loads((narrow_release / "manifest.json").read_text())
    for record in (metadata, adata.uns["m2ost"]):
        assert record["release_sha256"] == manifest["engine"]["release_sha256"]
        assert record["checkpoint_sha256"] == manifest["engine"]["checkpoint_sha256"]
        assert not record["trained"]
    assert metadata["spots"]["by_status"] == {"OK": len(adata)}
    assert metadata["views"]["native_pixels"] is True
    assert metadata["slide_facts"]["mpp_source"] == "aperio.MPP"
    assert set(metadata["timings"]) == {"describe_s", "score_s", "write_s"}
    assert Image.open(tmp_path / f"{stem}.pca.png").size[0] > 500
    features = json.loads((tmp_path / f"{stem}.geojson").read_text())["features"]
    measured = [feature["properties"]["measurements"]["untrained_003"] for feature in features]
    np.testing.assert_array_equal(np.array(measured, np.float32), adata.X[:, 3])


def test_real_spots_of_a_section_by_their_names(narrow_server, selection, tmp_path):
    status, output, errors = predict_on(narrow_server, "her2st/C2.jpg", tmp_path, "--spots", selection)
    assert status == 0, errors
    assert "µm/px unknown" in output
    adata = anndata.read_h5ad(tmp_path / "C2.h5ad")
    assert list(adata.obs_names) == list(read_spots(selection).names)


def test_views_at_a_requested_resolution_are_recorded(narrow_server, tmp_path):
    assert predict_on(narrow_server, SLIDE, tmp_path, "--pitch-um", 300, "--view-mpp", 0.688)[0] == 0
    views = json.loads((tmp_path / "CMU-1-Small-Region.json").read_text())["views"]
    assert views["native_pixels"] is False
    assert views["mpp"] == pytest.approx(0.688)
    assert views["level0_px_per_view_px"] == pytest.approx(0.688 / 0.499)
    status, _, errors = predict_on(narrow_server, SLIDE, tmp_path, "--view-mpp", "model")
    assert status == 1
    assert "--view-mpp" in errors


def test_a_server_elsewhere_by_slide_name_and_by_pixels(narrow_server, svs, tmp_path):
    arguments = ("--server", narrow_server.address, "--pitch-um", 200, "--out")
    assert m2ost("predict", SLIDE, *arguments, tmp_path / "id")[0] == 0
    assert m2ost("predict", svs, "--send-pixels", *arguments, tmp_path / "pixels")[0] == 0
    by_id, by_pixels = (anndata.read_h5ad(tmp_path / n / "CMU-1-Small-Region.h5ad") for n in ("id", "pixels"))
    np.testing.assert_allclose(by_pixels.X, by_id.X, rtol=0, atol=1e-5)
    assert by_pixels.uns["m2ost"]["pixels_sent_by_client"]


def test_zero_tissue_is_a_recorded_success(narrow_server, text_svs, tmp_path):
    blank = text_svs.parent / "blank.png"
    glass = Image.new("RGB", (1500, 1200), (243, 242, 243))
    glass.paste((20, 130, 60), (200, 200, 400, 1000))  # a stroke of green ink
    glass.save(blank)
    status, output, errors = predict_on(narrow_server, "text/blank.png", tmp_path / "out", "--mpp", 0.5)
    assert status == 0, errors
    assert "0 spots: nothing was scored, for no tissue was found on the slide" in output
    assert "has not the colours of haematoxylin and eosin and is left out" in output
    assert leftovers(tmp_path / "out") == ["blank.h5ad", "blank.json"]
    assert anndata.read_h5ad(tmp_path / "out" / "blank.h5ad").shape == (0, 6)


def test_a_full_disk_under_the_servers_log_costs_the_log_alone(narrow_release, tmp_path):
    blank = tmp_path / "blank.png"
    Image.new("RGB", (1500, 1200), (243, 242, 243)).save(blank)
    arguments = ("--mpp", 0.5, "--server-log", "/dev/full")
    status, _, errors = predict_apart(blank, narrow_release, tmp_path / "out", *arguments)
    assert status == 0, errors
    assert "the server's log is cut off here" in errors
    assert leftovers(tmp_path / "out") == ["blank.h5ad", "blank.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x,y\n", "holds no spot"),
        ("name,x,y\na\0b,400,300\n", "line 2: name 'a\\x00b' holds a control character"),
        ("x,y\n" + "".join(f"{x},{y}\n" for x in range(33) for y in range(35)), "look like places on an array"),
    ],
)
def test_a_spot_file_that_cannot_be_used_is_told_before_anything_is_scored(narrow_server, tmp_path, text, words):
    spots = tmp_path / "spots.csv"
    spots.write_text(text)
    arguments = ("wsi/CMU-1-Small-Region.svs", "--server", narrow_server.address, "--spots", spots)
    assert words in error_of("predict", *arguments, "--out", tmp_path / "out")
    assert leftovers(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--region", "0,0,60,60"), "region 0,0,60,60: none of the "),
        (
            ("--spots", "one.csv", "--region", "0,0,60,60"),
            "none of the 1 spots (file one.csv) lies in it; they lie in x 7",
        ),
        (("--dense", "16px", "--region", "0,0,60,60"), "is at least half tissue in it; tissue was found in x "),
    ],
)
def test_where_the_user_asks_for_no_spot_nothing_is_scored_and_the_error_says_why(
    narrow_server, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.csv").write_text("x,y\n700,900\n")
    slide = ("wsi/CMU-1-Small-Region.svs", "--server", narrow_server.address)
    assert words in error_of("predict", *slide, *arguments, "--out", "out")
    assert leftovers(tmp_path / "out") == []


def test_folders_of_any_name_and_a_proxy_that_is_none(narrow_release, svs, tmp_path):
    # All that a server is given lies below a name that a shell would take apart.
    odd = tmp_path / "Mü nchen; (R&D) $HOME 'x'"
    slide, release, home = odd / "Präparat 7.svs", odd / "release", odd / "home"
    home.mkdir(parents=True)
    slide.write_bytes(svs.read_bytes())
    shutil.copytree(narrow_release, release)
    left_out = ("no_proxy", "no_grpc_proxy", "NO_PROXY", "CI", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"TMPDIR": str(home), "HOME": str(home)}
    environment |= dict.fromkeys(("http_proxy", "HTTP_PROXY", "grpc_proxy"), "http://127.0.0.1:9")
    arguments = ("--pitch-um", 300, "--server-log", tmp_path / "log", "--trace", tmp_path / "trace.json")
    status, output, errors = predict_apart(slide, release, odd / "out", *arguments, env=environment)
    assert status == 0, errors
    assert "Präparat 7.h5ad" in output
    adata = anndata.read_h5ad(odd / "out" / "Präparat 7.h5ad")
    np.testing.assert_allclose(adata.X, by_pytorch(narrow_release, svs, adata.obsm["spatial"]), rtol=0, atol=1e-4)
    assert "backlog_unknown" not in (tmp_path / "log").read_text()
    assert "slide_tiler" in (tmp_path / "trace.json").read_text()
    # ONNX Runtime's marks of a report to its maker.
    assert not [path for path in home.rglob("*") if path.name in ("Microsoft", ".ses")]
    other = tmp_path / "Präparat 7.png"
    Image.new("RGB", (300, 300), (150, 60, 120)).save(other)
    status, _, errors = predict(other, narrow_release, odd / "out", "--mpp", 0.5)
    assert status == 1
    assert "the result of another slide of that name" in errors


def test_a_linked_slide_keeps_the_name_it_was_given_by(narrow_release, svs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store, slide = tmp_path / "store" / "MD5E-7f.svs", tmp_path / "sample1.svs"
    store.parent.mkdir()
    store.write_bytes(svs.read_bytes())
    slide.symlink_to(store)
    status, _, errors = predict("sample1.svs", narrow_release, "out", "--pitch-um", 300)
    assert status == 0, errors
    assert leftovers(tmp_path / "out") == [f"sample1.{e}" for e in ("h5ad", "json", "pca.png")]
    recorded = json.loads((tmp_path / "out" / "sample1.json").read_text())
    assert (recorded["slide"], recorded["served_as"]) == ("sample1.svs", "slides/MD5E-7f.svs")
    assert anndata.read_h5ad(tmp_path / "out" / "sample1.h5ad").uns["m2ost"]["served_as"] == "slides/MD5E-7f.svs"


def test_spots_outside_the_slide_have_no_value_and_the_exit_status_tells(narrow_server, tmp_path):
    spots = tmp_path / "spots.csv"
    spots.write_text("name,x,y\nin,800,900\nleft,-5,900\nbelow,800,99999\n")
    status, output, _ = predict_on(narrow_server, SLIDE, tmp_path / "out", "--spots", spots)
    assert status == 3
    assert "2 spots without a value: OUTSIDE_SLIDE" in output
    adata = anndata.read_h5ad(tmp_path / "out" / "CMU-1-Small-Region.h5ad")
    assert np.isnan(adata["left"].X).all()
    assert np.isfinite(adata["in"].X).all()


def test_bad_slides_and_spots_are_errors_that_say_what_to_do(
    narrow_server, truncated_svs, text_svs, svs, section, tmp_path
):
    bad_spots = tmp_path / "spots.csv"
    bad_spots.write_text("x,y\nnan,2\n")
    grey = tmp_path / "grey.png"
    Image.open(section).reduce(16).convert("L").save(grey)
    server = ("--server", narrow_server.address)
    for arguments, words in (
        (("half/truncated.svs", *server), "truncated.svs: "),
        (("text/notes.svs", *server), "notes.svs: no reader recognises the file"),
        (("wsi/absent.svs", *server), "no such slide on the server"),
        (("her2st/C2.jpg", *server), "give it with --mpp"),
        (("wsi/CMU-1-Small-Region.svs", *server, "--spots", bad_spots), "line 2"),
        (("wsi/CMU-1-Small-Region.svs", *server, "--spots", tmp_path / "absent.csv"), "cannot read"),
        (("wsi/CMU-1-Small-Region.svs", *server, "--map", "TP53"), "gene 'TP53' is not in the panel"),
        (("wsi/CMU-1-Small-Region.svs", *server, "--view-mpp", 100), "--view-mpp must lie in 0.0311875 to 3.992"),
        (("wsi/CMU-1-Small-Region.svs", *server, "--view-mpp", "nan"), "--view-mpp nan: give"),
        (("wsi/CMU-1-Small-Region.svs", *server, "--release", tmp_path), "serves a release in its own way"),
        ((tmp_path / "absent.svs",), "absent.svs: no such file"),
        ((svs, "--release", tmp_path), "not a release"),
        ((svs, "--send-pixels"), "give --server"),
        ((truncated_svs, "--send-pixels", *server), "truncated.svs"),
        ((grey, "--send-pixels", *server, "--mpp", 11), "grey.png: the picture has no colour"),
    ):
        assert words in error_of("predict", *arguments, "--out", tmp_path / "out")
        assert leftovers(tmp_path / "out") == []


def test_a_server_that_is_away(tmp_path):
    status, _, errors = m2ost("predict", "wsi/a.svs", "--server", "127.0.0.1:9", "--out", tmp_path, "--retry-for-s", 1)
    assert status == 1
    assert "127.0.0.1:9: no answer" in errors


def test_an_output_folder_that_cannot_be_written(narrow_release, svs, tmp_path):
    (tmp_path / "file").touch()
    log = tmp_path / "server.log"
    status, _, errors = predict(svs, narrow_release, tmp_path / "file" / "out", "--server-log", log)
    assert status == 1
    assert "choose another --out" in errors
    assert not log.exists(), "no server was started first"


def test_a_full_disk(narrow_server, tmp_path):
    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    command = [M2OST, "predict", SLIDE, "--server", narrow_server.address, "--out", tmp_path, "--pitch-um", "300"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, preexec_fn=small_files)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cancelling_leaves_no_half_written_file_and_no_server(narrow_release, svs, tmp_path, number):
    out, log = tmp_path / "out", tmp_path / "server.log"
    command = [M2OST, "predict", svs, "--release", narrow_release, "--out", out, "--server-log", log]
    command += ["--pitch-um", "15", "--batch-rows", "8"]  # for half a minute of scoring
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, preexec_fn=heed_ctrl_c, **pipes)
    deadline = time.monotonic() + 120
    while not scored_requests(log) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert scored_requests(log) > 0, "scoring is under way"
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 8, "a guard, tritonserver, four models, two decoders"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted; what lies under its final name is complete" in errors
    psutil.wait_procs(family, timeout=20)
    assert not still_running(family)
    assert leftovers(out) == []
    assert not list(SHM.glob(f"m2ost-{process.pid}-*"))


def scored_requests(log):
    """Requests whose views an embedded server has cut so far, by its log; probes left out."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return sum(record.get("event") == "tiled" and record["level"] == "info" for record in records)


def test_a_checkpoint_of_the_authors_all_the_way(tmp_path):
    from m2ost.authors import key_map
    from m2ost.config import M2OSTConfig
    from m2ost.network import M2OST as Network

    torch.manual_seed(0)
    model = Network(M2OSTConfig(n_genes=3, depth=1)).state_dict()
    torch.save({f"module.{k}": model[v] for k, v in key_map(1).items()}, tmp_path / "authors.pth")
    (tmp_path / "panel.txt").write_text("A\nB\nC\n")
    (tmp_path / "short.txt").write_text("A\n")
    convert = ("convert", tmp_path / "authors.pth", "--panel")
    error = error_of(*convert, tmp_path / "short.txt", "--out", tmp_path / "checkpoint")
    assert "predicts 3 genes but the panel lists 1" in error
    assert leftovers(tmp_path / "checkpoint") == []
    assert m2ost(*convert, tmp_path / "panel.txt", "--out", tmp_path / "checkpoint")[0] == 0
    status, output, _ = m2ost("export", tmp_path / "checkpoint", "--out", tmp_path / "release")
    assert status == 0
    assert "3 genes" in output
    assert "never overwritten" in error_of("export", tmp_path / "checkpoint", "--out", tmp_path / "release")
    status, output, _ = m2ost("info", tmp_path / "checkpoint")
    assert status == 0
    assert "joint attention" in output


def test_info_prints_the_papers_figures():
    status, output, _ = m2ost("info")
    assert status == 0
    for figure in ("7,043,466", "8.617", "6,810,000", "2.240", "7,210,106", "5.667", "joint attention"):
        assert figure in output


def test_usage_errors_and_version(tmp_path):
    assert m2ost("predict")[0] == 2
    assert m2ost("init", "--out", tmp_path / "x", "--depth", "0")[0] == 1
    assert leftovers(tmp_path) == []
    status, output, _ = m2ost("--version")
    assert (status, output.strip()) == (0, "0.1.0")


def test_a_missing_extra_is_named(tmp_path):
    script = "import sys; sys.modules['torch'] = None; from m2ost_cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", script, "info"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1
    assert install_command("export") in done.stderr
