"""Real tritonservers."""

from __future__ import annotations

from pathlib import Path

import pytest
from m2ost_client import ServerOptions, TritonServer
from m2ost_client.archive import SlideRow
from m2ost_client.server import command
from m2ost_preprocess.slides import SlideRoots
from PIL import Image

from tests.attack.target import ROOT, Log, Trap, make_trap
from tests.support.once import made_once

from . import archives
from .releases import HISTOGENE, STNET, make_release


@pytest.fixture(scope="session")
def stnet_release(tmp_path_factory) -> Path:
    """Of a network of one view, with its symmetries in the graph, under a name of its own."""
    options = {"test_time": "dihedral8", "name": "second_stnet"}
    return made_once(tmp_path_factory, "stnet", lambda folder: make_release(folder, STNET, **options)) / "release"


@pytest.fixture(scope="session")
def histogene_release(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "histogene", lambda folder: make_release(folder, HISTOGENE)) / "release"


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
        patch.setattr(command, "KEEPALIVE_MS", 1000)
        patch.setattr(command, "KEEPALIVE_TIMEOUT_MS", 2500)
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
