"""What is served is what the network computes: on real slides, in any batch, any order, any way in."""

import asyncio

import numpy as np
import pytest
from m2ost_client import ServerOptions, SpotStream, StreamOptions, TritonServer
from m2ost_contract import RowStatus
from m2ost_preprocess.decoder import Decoder

from tests.support.data import shared_file

from .releases import NARROW, by_pytorch, make_release
from .servers import by_server, metrics_at_rest

TOLERANCE = 1e-4
FP16_TOLERANCE = 5e-3
"""float16 has steps of 5e-4 at 1, which is about what the narrow network's steps yield; a few of them add up."""


@pytest.fixture(scope="module")
def pixel_centers():
    return np.random.default_rng(7).uniform((0, 0), (2220, 2967), (60, 2))


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "dicom_cmu1_small_region"])
def test_a_real_whole_slide_image_to_its_corners(narrow_server, narrow_release, name):
    centers = [(0, 0), (2219, 2966), (1109.5, 1500.25), (801, 903), (640, 2000), (1333, 2500), (77, 1400)]
    slide = shared_file(f"wsi/{name}")
    expression, status = by_server(narrow_server.address, f"wsi/{name}", centers, batch_rows=4)
    assert not status.any()
    np.testing.assert_allclose(expression, by_pytorch(narrow_release, slide, centers), rtol=0, atol=TOLERANCE)


def test_batches_and_order_do_not_matter(narrow_server, pixel_centers):
    reference, _ = by_server(narrow_server.address, "wsi/CMU-1-Small-Region.svs", pixel_centers)
    for options in ({"batch_rows": 1, "window": 8}, {"batch_rows": 7, "window": 1}, {"batch_rows": 256}):
        found, _ = by_server(narrow_server.address, "wsi/CMU-1-Small-Region.svs", pixel_centers, **options)
        np.testing.assert_allclose(found, reference, rtol=0, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(pixel_centers))
    found, _ = by_server(narrow_server.address, "wsi/CMU-1-Small-Region.svs", pixel_centers[order])
    np.testing.assert_allclose(found, reference[order], rtol=0, atol=1e-5)


def test_pixels_sent_by_the_client_give_the_same(narrow_server, pixel_centers, svs):
    centers = np.vstack([pixel_centers, [[-5, 5]]])

    async def stream():
        async with SpotStream(narrow_server.address, StreamOptions(batch_rows=16)) as client:
            expression = np.zeros((len(centers), 6), np.float32)
            with Decoder(client.info.views) as decoder:
                async for batch in client.predict_local(svs, centers, decoder):
                    expression[batch.rows] = batch.expression
        return expression

    expected, _ = by_server(narrow_server.address, "wsi/CMU-1-Small-Region.svs", centers)
    np.testing.assert_allclose(asyncio.run(stream()), expected, rtol=0, atol=1e-5, equal_nan=True)


def test_views_at_another_resolution(narrow_server, narrow_release, svs, pixel_centers):
    for scale in (0.5, 1.38):
        expression, _ = by_server(narrow_server.address, "wsi/CMU-1-Small-Region.svs", pixel_centers[:9], scale)
        expected = by_pytorch(narrow_release, svs, pixel_centers[:9], scale)
        np.testing.assert_allclose(expression, expected, rtol=0, atol=TOLERANCE)


def test_rows_without_a_value_are_nan_and_cost_no_other(narrow_server, narrow_release, svs):
    centers = [(800, 800), (-1, 10), (2220, 10), (10, 99999), (900, 900)]
    expression, status = by_server(narrow_server.address, "wsi/CMU-1-Small-Region.svs", centers)
    outside = RowStatus.OUTSIDE_SLIDE
    assert status.tolist() == [RowStatus.OK, outside, outside, outside, RowStatus.OK]
    assert np.isnan(expression[1:4]).all()
    good = by_pytorch(narrow_release, svs, [centers[0], centers[4]])
    np.testing.assert_allclose(expression[[0, 4]], good, rtol=0, atol=TOLERANCE)
    for scale in (float("nan"), 0.0, -1.0, 1e9):
        expression, status = by_server(narrow_server.address, "wsi/CMU-1-Small-Region.svs", [(800, 800)], scale)
        assert status.tolist() == [RowStatus.BAD_SCALE]
        assert np.isnan(expression).all()


def test_a_release_in_fp16_is_served_on_a_cpu(tmp_path, roots, svs, pixel_centers):
    release = make_release(tmp_path, NARROW, precision="fp16")
    with TritonServer(ServerOptions(release=release, roots=roots)) as server:
        expression, status = by_server(server.address, "wsi/CMU-1-Small-Region.svs", pixel_centers)
    assert expression.dtype == np.float32
    assert not status.any()
    expected = by_pytorch(release, svs, pixel_centers)
    np.testing.assert_allclose(expression, expected, rtol=0, atol=FP16_TOLERANCE)
    assert np.abs(expression - expected).max() > 1e-6, "float16 weights leave their mark: this was another graph"
    assert expected.std(axis=0).min() > FP16_TOLERANCE, "a map without contrast would pass by luck"


def test_requests_are_batched_for_real(narrow_server):
    centers = np.random.default_rng(1).integers(200, 2000, (240, 2))

    def executions():
        before = metrics_at_rest(narrow_server)
        by_server(narrow_server.address, "wsi/CMU-1-Small-Region.svs", centers, batch_rows=4, window=16)
        after = metrics_at_rest(narrow_server)

        def grown(name):
            return after[name] - before.get(name, 0)

        # The supervisor's probe adds a row to the engine alone, at any time; it runs by itself or joins a batch.
        probes = grown("nv_inference_count{m2ost}") - 240
        assert 0 <= probes <= 5
        assert grown("m2ost_tiler_spots_total{slide_tiler}") == 240
        assert grown("m2ost_tiler_moved_bytes_total{slide_tiler}") > 240 * 3 * 224 * 224 * 3
        return grown("m2ost_engine_session_runs_total{m2ost}") - probes

    # On a busy machine requests may come one at a time; without batches they always do.
    assert any(executions() <= 60 * 0.6 for _ in range(3)), "requests of 4 rows, up to 16 in flight, were hardly joined"
