"""Real data for the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.data import shared_file


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
