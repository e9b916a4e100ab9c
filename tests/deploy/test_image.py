"""The images: that they serve what is served without them, and hold and leave nothing that they should not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import numpy as np
import psutil
import pytest
from anndata import read_h5ad
from m2ost_cli.main import app
from m2ost_preprocess.network import read_url
from typer.testing import CliRunner

from tests.support.containers import BUILT, container, inspect, podman, said, tool
from tests.support.data import REPOSITORY
from tests.support.deployed import is_healthy, served
from tests.support.machine import wait_for

SLIDE = "CMU-1-Small-Region.svs"


def predict(out, *arguments) -> np.ndarray:
    done = CliRunner().invoke(
        app, ["predict", *map(str, arguments), "--pitch-um", "100", "--view-mpp", "0.5", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    return read_h5ad(out / "CMU-1-Small-Region.h5ad").X


def family(name: str) -> list[psutil.Process]:
    """All processes of a container, as this machine sees them; process 1 first."""
    first = psutil.Process(inspect("container", name)["State"]["Pid"])
    return [first, *first.children(recursive=True)]


def test_the_image_serves_what_is_served_without_it(server_image, release, svs, tmp_path, capsys):
    native = predict(tmp_path / "native", svs, "--release", release)
    with served(server_image, release, svs.parent) as (address, metrics, name):
        contained = predict(tmp_path / "contained", f"slides/{SLIDE}", "--server", address)
        difference = float(np.abs(contained - native).max())
        assert "nv_inference_count" in read_url(metrics, 5)

        for _ in range(3):
            (stub,) = [p for p in family(name) if "/m2ost/1/model.py" in " ".join(p.cmdline())]
            ready = podman("exec", name, "stat", "-c", "%.9Y", "/tmp/m2ost-ready")
            os.kill(stub.pid, signal.SIGKILL)
            wait_for(lambda stub=stub: not stub.is_running(), "the server to be replaced", 60)
            wait_for(
                lambda ready=ready: (
                    is_healthy(name) and podman("exec", name, "stat", "-c", "%.9Y", "/tmp/m2ost-ready") != ready
                ),
                "ready anew",
                60,
            )
        zombies = sum(p.status() == psutil.STATUS_ZOMBIE for p in family(name))
        again = predict(tmp_path / "again", f"slides/{SLIDE}", "--server", address)
        podman("stop", "--time", "30", name)
        status = inspect("container", name)["State"]["ExitCode"]
    with capsys.disabled():
        size_mb = inspect("image", server_image)["Size"] / 1e6
        sys.stdout.write(f"\nimage {size_mb:.0f} MB; max difference to a native run {difference}; zombies {zombies}\n")
    assert difference == 0.0
    np.testing.assert_array_equal(again, native)
    assert zombies == 0
    assert status == 0


def test_a_client_in_its_image_scores_an_archive(server_image, client_image, release, svs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)  # whoever runs there is another user
    (out / "slides.csv").write_text(f"slide_id,path,mpp\none,slides/{SLIDE},0.5\n")
    with served(server_image, release, svs.parent) as (address, _, _):
        command = ["rescore", "/out/slides.csv", "--server", address, "--pitch-um", "200", "--out", "/out/archive"]
        with container(client_image, *command, options=("--volume", f"{out}:/out")) as name:
            status = podman("wait", name).strip()
            assert status == "0", said(name)
    summary = json.loads((out / "archive" / "summary.json").read_text())
    assert (summary["done"], summary["failed"], summary["spots_without_value"]) == (1, [], 0)


@pytest.mark.parametrize("image", ["server_image", "client_image"])
def test_an_image_holds_no_compiler_no_installer_and_no_cuda(image, request):
    tag = request.getfixturevalue(image)
    script = """
import importlib.metadata, os, shutil
names = sorted(d.metadata["Name"].lower() for d in importlib.metadata.distributions())
print([p for p in ("cc", "gcc", "c++", "clang", "ld", "pip", "pip3") if shutil.which(p)])
print([n for n in names if n in ("pip", "torch") or n.startswith(("cupy", "nvidia-nv", "nvidia-cuda"))])
print(os.getuid(), "m2ost-triton" in names)
"""
    found = podman("run", "--rm", "--network", "none", "--entrypoint", "python", tag, "-c", script).splitlines()
    assert found == ["[]", "[]", "10001 True"]
    labels = inspect("image", tag)["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_the_image_has_a_list_of_what_is_in_it(server_image):
    folder = BUILT / "server-image"
    shutil.rmtree(folder, ignore_errors=True)  # of an image before, beside which this one would be put
    podman("save", "--format", "oci-dir", "--output", folder, server_image)
    packages = json.loads(tool("syft", f"oci-dir:{folder}", "--quiet", "--output", "spdx-json"))["packages"]
    (BUILT / "sbom.spdx.json").write_text(json.dumps(packages))
    assert {"m2ost-triton", "numpy", "onnxruntime", "tini"} <= {package["name"] for package in packages}


def test_the_containerfile_follows_good_practice():
    assert json.loads(tool("hadolint", "--format", "json", "--no-fail", REPOSITORY / "deploy" / "Containerfile")) == []
