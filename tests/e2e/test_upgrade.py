"""A new release beside the old one: traffic moved, an archive that spans it, and the way back."""

import asyncio

import numpy as np
import pytest
import tritonclient.grpc as triton
from m2ost_client import InputError, Ports, ServerOptions, SpotStream, StreamOptions, TritonServer
from m2ost_client.errors import ReleasesMixed
from m2ost_client.requests import view_inputs
from m2ost_contract import Manifest
from m2ost_preprocess.network import channel_options
from m2ost_preprocess.slides import SlideRoots
from tritonclient.utils import InferenceServerException

from tests.support.command import error_of
from tests.support.machine import kept_ports

from .archives import rescore, results
from .releases import another
from .servers import by_server

SLIDE = "archive/large.png"
CENTERS = np.random.default_rng(4).integers(200, 1100, (60, 2))


@pytest.fixture(scope="module")
def new_release(narrow_release, tmp_path_factory):
    return another(narrow_release, tmp_path_factory.mktemp("new") / "release")


@pytest.fixture(scope="module")
def both(archive_server, new_release, archive_slides):
    """The new release's server, not started yet, and an address of it and the old one's."""
    with kept_ports(1) as (port,), TritonServerLater(new_release, archive_slides[0], port) as later:
        yield later, f"ipv4:{archive_server.address},127.0.0.1:{port}"


class TritonServerLater:
    """A server that whoever needs it first starts."""

    def __init__(self, release, slides, port):
        self._options = ServerOptions(release=release, roots=SlideRoots({"archive": slides}), ports=Ports(grpc=port))
        self._server = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self._server is not None:
            self._server.stop()

    @property
    def started(self):
        if self._server is None:
            self._server = TritonServer(self._options)
            self._server.start()
        return self._server


def test_a_new_release_that_joins_a_name_in_mid_slide_ends_a_slide_and_an_archive(
    both, archive_slides, archive_server, undisturbed, tmp_path
):
    later, address = both

    def join(progress):
        if progress.spots:
            assert later.started.ready

    async def over_the_change():
        async with SpotStream(address, StreamOptions(batch_rows=1, window=1)) as stream:
            batches = stream.predict(SLIDE, CENTERS)
            for _ in range(3):
                await anext(batches)
            with pytest.raises(ReleasesMixed, match="do not serve the same") as refused:
                await asyncio.to_thread(rescore, archive_slides[1], tmp_path, [address], on_progress=join)
            assert "run the same command again" in str(refused.value)
            with pytest.raises(ReleasesMixed, match=address):
                async for _ in batches:
                    pass

    asyncio.run(over_the_change())
    assert rescore(archive_slides[1], tmp_path, [archive_server]).complete
    assert results(tmp_path) == results(undisturbed), "nothing of the new release is among them"


def test_a_name_of_two_releases_is_refused_from_the_start(both, archive_slides, tmp_path):
    later, address = both
    assert later.started.ready
    words = r"is one of them, and it serves release [0-9a-f]{12} on onnxruntime-cpu; ask for servers of one release"
    for listed in (address, f"ipv4:{','.join(reversed(address.removeprefix('ipv4:').split(',')))}"):
        with pytest.raises(ReleasesMixed, match=words):
            by_server(listed, SLIDE, CENTERS[:2])
        with pytest.raises(ReleasesMixed, match=words):
            rescore(archive_slides[1], tmp_path, [listed])
    assert "do not serve the same" in error_of("predict", SLIDE, "--mpp", 0.5, "--server", address, "--out", tmp_path)


def test_an_archive_that_spans_an_upgrade_is_refused_and_goes_on_once_it_is_rolled_back(
    both, archive_slides, archive_server, undisturbed, tmp_path
):
    new, runs = both[0].started, []
    begun = rescore(
        archive_slides[1],
        tmp_path,
        [archive_server],
        control=runs.append,
        on_progress=lambda done: done.slides and runs[0].drain(),
    )
    assert begun.drained
    assert begun.summary["left"]
    own, others = (Manifest.read(s.options.release).engine.release_sha256 for s in (archive_server, new))
    with pytest.raises(InputError, match=rf"release_sha256 was {own}, is {others}\); go back to that to go on"):
        rescore(archive_slides[1], tmp_path, [new])
    with pytest.raises(InputError, match="an archive is scored with one: leave one out"):
        rescore(archive_slides[1], tmp_path, [archive_server, new])
    assert rescore(archive_slides[1], tmp_path, [archive_server]).complete
    assert results(tmp_path) == results(undisturbed)


def test_slides_move_to_the_new_server_and_back_by_the_address_alone(both, archive_server):
    async def ask(server):
        async with SpotStream(server.address) as stream:
            batches = [batch async for batch in stream.predict(SLIDE, CENTERS[:4])]
            return stream.info.release_sha256, batches

    old, new, rolled_back = (asyncio.run(ask(server)) for server in (archive_server, both[0].started, archive_server))
    assert new[0] == "0" * 64 != old[0] == rolled_back[0]
    assert all(not batch.status.any() for _, batches in (old, new, rolled_back) for batch in batches)


def test_an_engine_refuses_views_for_another_release(archive_server):
    address = archive_server.address
    with triton.InferenceServerClient(address, channel_args=channel_options(address)) as client:
        views = [np.zeros((1, 224, 224, 3), np.uint8)] * 3
        inputs = view_inputs(("VIEW0", "VIEW1", "VIEW2"), views)
        own = Manifest.read(archive_server.options.release).engine.release_sha256
        assert client.infer("m2ost_patches", inputs, parameters={"release": own}).as_numpy("EXPRESSION").shape[0] == 1
        with pytest.raises(InferenceServerException, match=f"this server serves release {own}, the request is for 00"):
            client.infer("m2ost_patches", inputs, parameters={"release": "0" * 64})
