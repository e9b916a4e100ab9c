"""Another system than M2OST, served by the same models: what it predicts of a real slide is what PyTorch computes."""

import asyncio
import json

import numpy as np
import pytest
import zarr
from m2ost_client import ServerOptions, SpotStream, StreamOptions, TritonServer
from m2ost_contract import RowStatus
from m2ost_preprocess.decoder import Decoder

from tests.support.command import m2ost

from .releases import by_pytorch
from .servers import by_server


@pytest.fixture
def release(stnet_release):
    return stnet_release


@pytest.fixture(scope="module")
def server(stnet_release, roots):
    with TritonServer(ServerOptions(release=stnet_release, roots=roots)) as running:
        yield running


def test_an_st_net_on_a_real_slide_with_its_symmetries_in_the_graph(server, release, svs):
    centers = np.random.default_rng(3).uniform((0, 0), (2220, 2967), (30, 2))
    expression, status = by_server(server.address, "wsi/CMU-1-Small-Region.svs", [*centers, (-9, 5)], batch_rows=8)
    assert status.tolist() == [RowStatus.OK] * 30 + [RowStatus.OUTSIDE_SLIDE]
    assert np.isnan(expression[30]).all()
    expected = by_pytorch(release, svs, centers)
    np.testing.assert_allclose(expression[:30], expected, rtol=0, atol=1e-4)
    assert expected.std(axis=0).min() > 1e-2, "a map without contrast would pass by luck"


def test_its_one_view_is_what_a_client_with_pixels_sends(server, svs):
    centers = np.random.default_rng(4).integers(300, 1900, (5, 2))

    async def stream():
        async with SpotStream(server.address, StreamOptions()) as client:
            assert client.info.views.names == ("VIEW0",)
            expression = np.zeros((5, 6), np.float32)
            with Decoder(client.info.views) as decoder:
                async for batch in client.predict_local(svs, centers, decoder):
                    expression[batch.rows] = batch.expression
        return expression

    expected, _ = by_server(server.address, "wsi/CMU-1-Small-Region.svs", centers)
    np.testing.assert_allclose(asyncio.run(stream()), expected, rtol=0, atol=1e-5)


def test_the_command_serves_its_checkpoint_densely(release, svs, tmp_path):
    checkpoint, log = release.parent / "checkpoint", tmp_path / "log"
    where = ("--dense", "64px", "--region", "600,350,200,150", "--everywhere")
    arguments = ("--checkpoint", checkpoint, "--out", tmp_path / "out", "--server-log", log)
    status, output, errors = m2ost("predict", svs, *arguments, *where)
    assert status == 0, errors
    assert "UNTRAINED" in output
    (loaded,) = (json.loads(line) for line in log.read_text().splitlines() if "engine_loaded" in line)
    assert loaded["engine"] == "onnxruntime-cpu"
    stored = next(path for path in (tmp_path / "out").iterdir() if path.suffix == ".zarr")
    assert np.isfinite(np.asarray(zarr.open_group(stored, mode="r")["expression"])).any()
