"""Real data for the tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.data import shared_file
from tests.support.once import made_once


@pytest.fixture(scope="session")
def heavy():
    """For what trains, exports, measures, waits, runs a browser or sweeps over many files: it gets the marker."""


def pytest_collection_modifyitems(items):
    for item in items:
        if "heavy" in item.fixturenames:
            item.add_marker("heavy")


@pytest.fixture(scope="session")
def svs() -> Path:
    return shared_file("wsi/CMU-1-Small-Region.svs")


@pytest.fixture(scope="session")
def dicom() -> Path:
    return shared_file("wsi/dicom_cmu1_small_region")


@pytest.fixture(scope="session")
def pyramid() -> Path:
    return shared_file("wsi/her2st_C2.tif")


@pytest.fixture(scope="session")
def section() -> Path:
    return shared_file("her2st/images/C2.jpg")


@pytest.fixture(scope="session")
def selection() -> Path:
    return shared_file("her2st/spots/C2_selection.tsv")


@pytest.fixture(scope="session")
def truncated_svs(svs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first half of a real slide: its directory is at the end, and gone."""
    path = tmp_path_factory.mktemp("bad") / "truncated.svs"
    data = svs.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


@pytest.fixture(scope="session")
def text_svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad") / "notes.svs"
    path.write_text("this is not a slide\n")
    return path


@pytest.fixture(scope="session")
def shipped_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's cache as the first `m2ost predict` leaves it: with the release of the shipped checkpoint."""
    from m2ost.shipped import shipped_checkpoint
    from m2ost_cli.embedded import shipped_release

    def export(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch, shipped_checkpoint() as checkpoint:
            patch.setenv("XDG_CACHE_HOME", str(folder))
            shutil.copytree(checkpoint, shipped_release().parent / "checkpoint")

    return made_once(tmp_path_factory, "shipped", export)


@pytest.fixture(scope="session")
def paper_release(shipped_cache: Path) -> Path:
    """A release of the paper's size: that of the shipped checkpoint, which lies beside it."""
    from m2ost.shipped import CHECKPOINT

    (checkpoint,) = shipped_cache.glob("*/checkpoint")
    (release,) = checkpoint.parent.glob(f"{CHECKPOINT}-*")
    return release


@pytest.fixture(scope="session")
def narrow_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow release, with body and tail, of which the manifest says that it passed the gate of bfloat16 here.

    Its checkpoint lies beside it.
    """
    from m2ost_contract import EngineError
    from m2ost_serving.engine.mixed import bf16_instructions

    from tests.e2e.releases import NARROW, make_release

    try:
        instructions = bf16_instructions()
    except EngineError:
        instructions = "avx512_bf16"  # as it would be elsewhere
    gated = {"instructions": instructions, "measured": []}
    return made_once(tmp_path_factory, "narrow", lambda folder: make_release(folder, NARROW, gated=gated)) / "release"
