"""Slides and releases out of an object storage that fails in every way, over s3fs as it is: named, or healed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import anndata
import pandas as pd
import pytest
import tifffile
from m2ost_client import ServerOptions, TritonServer
from m2ost_contract import Release, sha256_file
from m2ost_preprocess.readers import open_slide

from tests.e2e.archives import CORNERS, MPP
from tests.support.faulty_proxy import Fault, faulty_proxy
from tests.support.moto import moto, need_moto, put

TIMEOUT_S = 2.0
TRIES, PAUSES_S = 4, 1 + 2 + 4
S3FS_TRIES = 5
"""Of s3fs itself, in each of our tries, where a body is cut."""

M2OST = Path(sys.executable).with_name("m2ost")


@pytest.fixture
def storage(tmp_path):
    """Port of an empty storage with a bucket, and a proxy before it."""
    need_moto()
    with moto(tmp_path / "moto.log") as port, faulty_proxy("127.0.0.1", port) as proxy:
        put(port, "/slides")
        yield port, proxy


def m2ost(proxy, *arguments):
    """The command, told of the storage as s3fs is; botocore's own tries are off, so that ours are seen."""
    credentials = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    found = {"AWS_ENDPOINT_URL": proxy.address, "AWS_MAX_ATTEMPTS": "1", "NO_PROXY": "127.0.0.1"}
    environment = {**os.environ, **credentials, **found}
    command = [M2OST, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    return done.returncode, done.stdout, done.stderr


def slides_of(svs, folder):
    """Small slides that tell their µm/px, by name."""
    folder.mkdir()
    slide = open_slide(svs)
    resolution = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    (x, y), names = CORNERS[0], ("busy", "cut", "forbidden", "good", "replaced", "slow", "stalled")
    for i, name in enumerate(names):
        pixels = slide.read(x + 23 * i, y + 17 * i, 520, 520)
        tifffile.imwrite(folder / f"{name}.tif", pixels, tile=(256, 256), **resolution)
    return {path.stem: path.read_bytes() for path in sorted(folder.iterdir())}


def values_of(out):
    """Every slide's spots, statuses and values, by name."""
    found = {path.stem: anndata.read_h5ad(path) for path in (out / "results").glob("*.h5ad")}
    return {name: (a.X.tobytes(), a.obsm["spatial"].tobytes(), a.obs.to_csv()) for name, a in found.items()}


def test_each_slide_heals_or_is_named_and_the_next_run_ends_it(storage, narrow_release, svs, tmp_path):
    port, proxy = storage
    here, out = tmp_path / "here", tmp_path / "out"
    slides = slides_of(svs, here)
    for name, data in slides.items():
        put(port, f"/slides/set/{name}.tif", data)
    replacement = slides["replaced"] = slides["good"]
    (here / "replaced.tif").write_bytes(replacement)
    always = ("GET", "HEAD")
    faults = {
        "busy": Fault(status=503, times=2),
        "cut": Fault(cut=True, times=S3FS_TRIES + 1),
        "forbidden": Fault(status=403, methods=always),
        "replaced": Fault(before=lambda: put(port, "/slides/set/replaced.tif", replacement), times=1),
        "slow": Fault(stall=True, times=1),
        "stalled": Fault(stall=True),
    }
    proxy.faults = {f"/slides/set/{name}.tif": fault for name, fault in faults.items()}
    with TritonServer(ServerOptions(release=narrow_release)) as server:
        how = ("--server", server.address, "--send-pixels")
        assert m2ost(proxy, "rescore", here, "--out", tmp_path / "local", *how)[0] == 0
        expected = values_of(tmp_path / "local")
        assert {name for name, (values, *_) in expected.items() if values} == set(slides), "all have tissue"

        far = ("rescore", "s3://slides/set/*.tif", "--out", out, "--storage-timeout-s", TIMEOUT_S, *how)
        status, output, errors = m2ost(proxy, *far)
        assert status == 3, errors
        assert "4 of 7 slides done (0 before this run), 3 failed, 0 left" in output
        summary = json.loads((out / "summary.json").read_text())
        reasons = {failed["slide_id"]: failed["reason"] for failed in summary["failed"]}
        prefix = "s3://slides/set"
        assert set(reasons) == {"forbidden", "replaced", "stalled"}
        assert reasons["forbidden"].startswith(f"{prefix}/forbidden.tif: cannot be fetched: PermissionError: ")
        assert reasons["replaced"].startswith(f"{prefix}/replaced.tif: became another file while it was fetched")
        assert reasons["stalled"] == f"{prefix}/stalled.tif: cannot be fetched: nothing came for 2 s ({TRIES} tries)"
        assert proxy.asked["/slides/set/forbidden.tif"] == ["HEAD"], "no further try would help"
        assert summary["run"]["seconds"] < 2 * (TRIES * TIMEOUT_S + PAUSES_S), "a stall ends by its deadline"
        found = values_of(out)
        assert found == {name: expected[name] for name in ("busy", "cut", "good", "slow")}
        table = pd.read_parquet(out / "archive.parquet").set_index("slide_id")
        assert table.reason.dropna().to_dict() == reasons
        assert [path for path in (out / "cache").rglob("*") if path.is_file()] == []

        proxy.faults.clear()
        status, output, errors = m2ost(proxy, *far)
        assert status == 0, errors
        assert "7 of 7 slides done (4 before this run), 0 failed, 0 left" in output
        assert values_of(out) == expected


def test_a_release_comes_whole_or_not_at_all(storage, narrow_release, tmp_path):
    port, proxy = storage
    release, out = Release.open(narrow_release), tmp_path / "release"
    names = [*release.manifest.files, "manifest.json"]
    for name in names:
        put(port, f"/slides/release/{name}", (narrow_release / name).read_bytes())
    graph = release.onnx.relative_to(narrow_release).as_posix()
    fetch = ("fetch", "s3://slides/release", "--sha256", sha256_file(narrow_release / "manifest.json"), "--out", out)
    fetch += ("--storage-timeout-s", TIMEOUT_S)
    proxy.faults = {f"/slides/release/{graph}": Fault(status=403)}
    status, _, errors = m2ost(proxy, *fetch)
    assert status == 1
    assert f"s3://slides/release/{graph}: cannot be fetched: PermissionError" in " ".join(errors.split())
    assert not list(tmp_path.glob("*release*"))
    proxy.faults = {
        "/slides/release/manifest.json": Fault(status=503, times=2),
        f"/slides/release/{graph}": Fault(stall=True, times=1),
    }
    status, output, errors = m2ost(proxy, *fetch)
    assert status == 0, errors
    assert f"{len(release.manifest.files)} files as exported" in output
    assert {name: (out / name).read_bytes() for name in names} == {
        name: (narrow_release / name).read_bytes() for name in names
    }
