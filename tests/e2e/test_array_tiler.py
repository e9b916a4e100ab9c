"""The GPU's tiler in a real server: with NumPy in CuPy's place, and its refusal where there is no GPU."""

import shutil

import numpy as np
import pytest
from m2ost_bench.gpu_check.device import Device, Pace
from m2ost_bench.gpu_check.inputs import FreshSlide, grids_on
from m2ost_bench.gpu_check.networks import Networks
from m2ost_bench.gpu_check.parts import RIGHT, Outcome, Skip
from m2ost_bench.gpu_check.served import Work, measure_served
from m2ost_client import ServerOptions, TritonServer
from m2ost_client.errors import ServerStartError

from .releases import network_of, reseal
from .servers import by_server

CENTERS = [(0, 0), (2219, 2966), (801, 903), (640, 2000), (77, 1400), (-1, 5), (805, 903)]


def with_profile(release, folder, name, tiler):
    """A copy of a release with a profile in which only the tiler differs from the default."""
    copy = folder / "release"
    shutil.copytree(release, copy)
    for model, text in (("m2ost", (copy / "m2ost" / "config.pbtxt").read_text()), ("slide_tiler", tiler(copy))):
        config = copy / model / "configs" / f"{name}.pbtxt"
        config.parent.mkdir(exist_ok=True)
        config.write_text(text)
    return reseal(copy)


def with_numpy(release):
    parameter = 'parameters { key: "cut" value { string_value: "numpy" } }\n'
    return (release / "slide_tiler" / "config.pbtxt").read_text() + parameter


def test_what_the_gpus_tiler_serves_with_numpy_is_the_same_to_the_bit(narrow_server, narrow_release, roots, tmp_path):
    release, log = with_profile(narrow_release, tmp_path, "numpy", with_numpy), []
    slides = ["wsi/CMU-1-Small-Region.svs", "wsi/dicom_cmu1_small_region"]
    with TritonServer(ServerOptions(release=release, roots=roots, profile="numpy"), on_log=log.append) as server:
        for slide in slides:
            for scale in (1.0, 0.5):
                # One request at a time: a batch of another size may round differently in the engine.
                options = {"scale": scale, "batch_rows": 7, "window": 1}
                found, status = by_server(server.address, slide, CENTERS, **options)
                expected, expected_status = by_server(narrow_server.address, slide, CENTERS, **options)
                np.testing.assert_array_equal(found, expected)
                assert status.tolist() == expected_status.tolist() == [0, 0, 0, 0, 0, 1, 0]
        with pytest.raises(Exception, match=r"truncated\.svs"):
            by_server(server.address, "half/truncated.svs", CENTERS)
    chosen = [record for record in log if record.get("event") == "decoding_chosen"]
    assert {record["slide"]: record["device"] for record in chosen} == {slide.split("/")[1]: "cpu" for slide in slides}


def test_without_a_gpu_the_gpus_tiler_refuses_to_start_by_name(narrow_release, roots, monkeypatch):
    monkeypatch.setattr(
        "m2ost_client.server.supervisor.check_start", lambda *facts: []
    )  # Triton's own words are wanted
    log = []
    options = ServerOptions(release=narrow_release, roots=roots, profile="python-gpu")
    with pytest.raises(ServerStartError, match="slide_tiler"), TritonServer(options, on_log=log.append):
        pass
    failures = [record["message"] for record in log if "failed to load 'slide_tiler'" in str(record.get("message"))]
    assert "no GPUs are available" in failures[0] or "cannot cut views on GPU" in failures[0]


def test_the_gpu_check_serves_a_release_and_compares(narrow_release, svs, tmp_path):
    centers, outcome = np.array(CENTERS[:5], np.int32), Outcome("served")
    networks = Networks(network_of(narrow_release), Device("cpu"), [], svs, centers, tmp_path)
    work = Work(FreshSlide(svs, tmp_path / "slide"), centers, grids_on((2220, 2967), 40))
    measure_served(outcome, networks, narrow_release, "cpu", work, Pace(2, 0.0))
    assert outcome.status == RIGHT, outcome.reason
    assert outcome.figures["max_abs_diff"] < 1e-4
    assert set(outcome.figures["spots_per_s"]) == {"apart spots", "dense spots"}
    assert 1 < outcome.figures["rows_per_execution"] <= 32
    assert [path.name for path in (tmp_path / "slide").iterdir()] == ["7.svs"]  # once for truth, thrice for each grid


def test_the_gpu_check_skips_a_profile_that_cannot_be_served_here(narrow_release, svs, tmp_path):
    networks = Networks(network_of(narrow_release), Device("cpu"), [], svs, np.array(CENTERS[:2], np.int32), tmp_path)
    work = Work(FreshSlide(svs, tmp_path / "slide"), networks.centers, {})
    with pytest.raises(Skip, match="cannot be served here with profile 'python-gpu'"):
        measure_served(Outcome("served"), networks, narrow_release, "python-gpu", work, Pace(1, 0.0))
