"""Real releases, and real tritonservers that serve them."""

from __future__ import annotations

import asyncio
import re
import signal
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from m2ost.checkpoint import initialise, load, save
from m2ost.config import M2OSTConfig
from m2ost_client import ServerOptions, SpotStream, StreamOptions, TritonServer, command
from m2ost_client.archive import SlideRow
from m2ost_client.probe import tensor
from m2ost_contract import Manifest, as_centers, sha256_file
from m2ost_export.release import build_release
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides import SlideRoots
from m2ost_preprocess.views import cut_views
from PIL import Image

from tests.attack.target import ROOT, Log, Trap, make_trap
from tests.conftest import wait_for

from . import archives

NARROW = M2OSTConfig(n_genes=6, depth=1, dim=12, heads=1, head_dim=12, ffn_dim=8, channel_dim=8)
"""A depth-1, narrow network: the whole serving path at a fraction of the arithmetic."""


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


def make_release(folder: Path, config: M2OSTConfig, seed: int = 0, **options) -> Path:
    """Checkpoint and release of a freshly initialised network below ``folder``; returns the release."""
    model, card = initialise(config, tuple(f"untrained_{i:03d}" for i in range(config.n_genes)), seed=seed)
    build_release(model, save(folder / "checkpoint", model, card), folder / "release", **options)
    return folder / "release"


def reseal(release: Path) -> Path:
    """Let the manifest of a release that a test has changed describe it as it is now."""
    manifest = Manifest.read(release)
    manifest.files.update({name: sha256_file(release / name) for name in manifest.files})
    manifest.write(release)
    return release


def network_of(release: Path):
    """The PyTorch network that a release was made from."""
    return load(release.parent / "checkpoint")[0]


def by_pytorch(release: Path, slide: Path, centers, scale: float = 1.0) -> np.ndarray:
    """What PyTorch computes on the same views, cut in this process."""
    model = network_of(release)
    geometry, centers = model.config.views, as_centers(centers)
    views = [np.empty((len(centers), *geometry.shape), np.uint8) for _ in geometry.names]
    statuses = cut_views(open_slide(slide), centers, np.full(len(centers), scale, np.float32), geometry, views)
    assert not statuses.any()
    parts = []
    with torch.inference_mode():
        for first in range(0, len(centers), 16):
            parts.append(model(*(torch.from_numpy(v[first : first + 16]) for v in views)).numpy())
    return np.concatenate(parts)


def by_server(address: str, slide: str, centers, scale: float = 1.0, **options):
    """(expression, status) of every spot, through the server."""

    async def stream():
        async with SpotStream(address, StreamOptions(**options)) as client:
            expression = np.full((len(centers), len(client.info.genes)), 99, np.float32)
            status = np.full(len(centers), -1)
            async for batch in client.predict(slide, centers, scale=scale):
                assert (status[batch.rows] == -1).all(), "a spot came twice"
                expression[batch.rows], status[batch.rows] = batch.expression, batch.status
        assert (status >= 0).all()
        return expression, status

    return asyncio.run(stream())


def heed_ctrl_c():
    """For ``preexec_fn``: a shell that starts tests in the background has its children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def raw_request(slides, centers):
    """Inputs of m2ost_slide as a client without our library would send them."""
    return [
        tensor("SLIDE", np.array(slides, dtype=object).reshape(-1, 1)),
        tensor("CENTER", np.array(centers, np.int32).reshape(-1, 2)),
        tensor("SCALE", np.ones((len(slides), 1), np.float32)),
    ]


def metrics_of(server: TritonServer) -> dict[str, float]:
    """Prometheus metrics, by ``name{model}``."""
    with urllib.request.urlopen(server.metrics_url) as answer:
        text = answer.read().decode()
    found = re.findall(r'^(\w+)\{[^}]*model="(\w+)"[^}]*\} (\S+)$', text, re.M)
    return {f"{name}{{{model}}}": float(value) for name, model, value in found}


def process_of(server, words):
    """The process below a server whose command has these words in it."""
    for process in psutil.Process(server.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if words in " ".join(process.cmdline()):
                return process
    raise AssertionError(f"no process {words}")


def still_running(processes):
    """Those of some processes that have not ended; a zombie has, and waits for its parent to notice."""
    left = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            left += [process] if process.is_running() and process.status() != psutil.STATUS_ZOMBIE else []
    return left


def waiting(server: TritonServer) -> float:
    """Requests that wait in the tiler's queue."""
    return metrics_of(server)["m2ost_tiler_waiting_requests{slide_tiler}"]


def metrics_at_rest(server: TritonServer) -> dict[str, float]:
    """Metrics between two runs of the engine: they stand still for a moment.

    Triton counts an execution a moment after it has answered it, and the supervisor's probe may come at any time.
    """
    counts = ("m2ost_engine_session_runs_total{m2ost}", "nv_inference_exec_count{m2ost}")

    def latest():
        first = metrics_of(server)
        time.sleep(0.2)
        second = metrics_of(server)
        return second if all(first[count] == second[count] for count in counts) else None

    return wait_for(latest, "a moment at which the engine has nothing to do")


@pytest.fixture(scope="session")
def paper_release(tmp_path_factory) -> Path:
    return make_release(tmp_path_factory.mktemp("paper"), M2OSTConfig())


@pytest.fixture(scope="session")
def narrow_release(tmp_path_factory) -> Path:
    return make_release(tmp_path_factory.mktemp("narrow"), NARROW)


@pytest.fixture(scope="session")
def trap(svs, tmp_path_factory) -> Trap:
    """A root of links that lead out of it, pipes and folders, and the files outside that nobody may open."""
    return make_trap(tmp_path_factory.mktemp("trap"), svs)


@pytest.fixture(scope="session")
def roots(svs, section, truncated_svs, text_svs, trap) -> SlideRoots:
    folders = {"wsi": svs, "her2st": section, "half": truncated_svs, "text": text_svs}
    return SlideRoots({**{name: path.parent for name, path in folders.items()}, ROOT: trap.root})


@pytest.fixture(scope="session")
def narrow_log() -> Log:
    return Log()


@pytest.fixture(scope="session")
def narrow_server(narrow_release, roots, narrow_log):
    """A server that no test may harm."""
    with TritonServer(ServerOptions(release=narrow_release, roots=roots), on_log=narrow_log.append) as server:
        yield server


@pytest.fixture(scope="session")
def http_log() -> list[dict]:
    return []


@pytest.fixture(scope="session")
def http_server(narrow_release, roots, http_log):
    """One that speaks HTTP too, and soon asks idle clients whether they are there. No test may harm it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "KEEPALIVE_MS", 2000)
        patch.setattr(command, "KEEPALIVE_TIMEOUT_MS", 5000)
        options = ServerOptions(release=narrow_release, roots=roots, http=True)
        with TritonServer(options, on_log=http_log.append) as server:
            yield server


@pytest.fixture(scope="session")
def archive_slides(svs, tmp_path_factory):
    """The folder and rows of an archive: one larger slide, five small ones, and one without tissue."""
    folder = tmp_path_factory.mktemp("archive")
    archives.cut(svs, folder / "large.png", (200, 300), 1300)
    Image.new("RGB", (350, 300), (243, 242, 243)).save(folder / "blank.png")
    large = SlideRow("large", "archive/large.png", mpp=archives.MPP, pitch_um=60.0)
    blank = SlideRow("blank", "archive/blank.png", mpp=archives.MPP)
    return folder, [large, *archives.make_slides(svs, folder, 5), blank]


@pytest.fixture(scope="session")
def archive_log() -> list[dict]:
    return []


@pytest.fixture(scope="session")
def archive_server(narrow_release, archive_slides, archive_log):
    """A server on them that no test may harm for long."""
    options = ServerOptions(release=narrow_release, roots=SlideRoots({"archive": archive_slides[0]}))
    with TritonServer(options, on_log=archive_log.append) as server:
        yield server


@pytest.fixture(scope="session")
def undisturbed(archive_server, archive_slides, tmp_path_factory):
    """The folder that a run leaves which nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert archives.rescore(archive_slides[1], out, [archive_server]).complete
    return out
