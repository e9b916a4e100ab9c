"""Real tritonservers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from m2ost_client import Credentials, ServerOptions, TritonServer
from m2ost_client.archive import SlideRow
from m2ost_client.server import command
from m2ost_preprocess.slides import SlideRoots
from PIL import Image

from tests.attack.target import ROOT, Log, Trap, make_trap
from tests.support.certificates import FOR_CLIENTS, FOR_SERVERS, Authority
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


@dataclass(frozen=True)
class Secured:
    """A server that speaks TLS, and takes only clients with a certificate and a token."""

    server: TritonServer
    options: ServerOptions
    known: Credentials
    token: str
    log: list[dict]
    folder: Path


@pytest.fixture(scope="session")
def secured(narrow_release, archive_slides, svs, tmp_path_factory):
    """One on 127.0.0.2 that no test may harm; what its clients show, and a folder with its authority's files."""
    folder, log, token = tmp_path_factory.mktemp("secured"), [], "a-token.that_nobody~may/see+42=="
    authority = Authority(folder)
    server = authority.sign("server", "pods.example", "127.0.0.2", "127.0.0.3", usage=FOR_SERVERS)
    client = authority.sign("client", usage=FOR_CLIENTS)
    Authority(folder, "strangers").sign("stranger")
    for name, text in (("token", token), ("another", "another")):
        (folder / name).touch(0o600)
        (folder / name).write_text(f"{text}\n")
    shown = Credentials(ca=authority.file, certificate=server.certificate, key=server.key, token_file=folder / "token")
    known = Credentials(ca=authority.file, certificate=client.certificate, key=client.key, token_file=folder / "token")
    slides = SlideRoots({"archive": archive_slides[0], "wsi": svs.parent})
    options = ServerOptions(release=narrow_release, roots=slides, host="127.0.0.2", credentials=shown)
    with TritonServer(options, on_log=log.append) as running:
        yield Secured(running, options, known, token, log, folder)
