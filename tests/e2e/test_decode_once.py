"""A served slide is decoded once, whatever is asked of it, as the server itself counts."""

import asyncio

import numpy as np
import pytest
import tifffile
import tritonclient.grpc.aio as triton
from m2ost.config import M2OSTConfig
from m2ost_client import ServerOptions, SpotStream, StreamOptions, TritonServer
from m2ost_client.timeline import Timeline
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides import SlideRoots
from m2ost_preprocess.slides.spots import grid
from m2ost_preprocess.slides.tissue import MASK_PX, tissue_mask

from .releases import NARROW, by_pytorch, make_release
from .servers import by_server, metrics_of, raw_request

WINDOW_PX = 896
COUNTED = ("spots", "decoded_px", "decoded_tiles", "cached_tiles", "moved_bytes")


@pytest.fixture(scope="module")
def crops(pyramid, tmp_path_factory):
    """Two small slides of real pixels, tiled and compressed."""
    folder = tmp_path_factory.mktemp("crops")
    reader = open_slide(pyramid)
    for name, left, top in (("a.tif", 3000, 3000), ("b.tif", 4500, 5000)):
        tifffile.imwrite(
            folder / name,
            reader.read(left, top, 768, 640),
            tile=(256, 256),
            compression="zlib",
            photometric="rgb",
            resolution=(1e4 / 0.688, 1e4 / 0.688),
            resolutionunit="CENTIMETER",
        )
    return folder


@pytest.fixture(scope="module")
def server(narrow_release, crops, pyramid):
    roots = SlideRoots({"crops": crops, "wsi": pyramid.parent})
    with TritonServer(ServerOptions(release=narrow_release, roots=roots)) as server:
        yield server


def counts(server):
    found = metrics_of(server)
    return {name: found[f"m2ost_tiler_{name}_total{{slide_tiler}}"] for name in COUNTED}


def counted(server, run):
    before = counts(server)
    asyncio.run(run())
    return {name: after - before[name] for name, after in counts(server).items()}


def needed_px(path, centers):
    """Pixels of the compressed tiles that the windows of spots touch, each once."""
    reader = open_slide(path)
    (width, height), (tile_width, tile_height) = reader.size, reader.tile_size(0)
    touched = np.zeros((-(-height // tile_height), -(-width // tile_width)), bool)
    for x, y in np.floor(centers).astype(int) - WINDOW_PX // 2:
        rows = slice(max(y, 0) // tile_height, (y + WINDOW_PX - 1) // tile_height + 1)
        touched[rows, max(x, 0) // tile_width : (x + WINDOW_PX - 1) // tile_width + 1] = True
    return sum(
        min(tile_width, width - column * tile_width) * min(tile_height, height - row * tile_height)
        for row, column in np.argwhere(touched)
    )


async def score(server, slide, centers, scale=1.0):
    """Score spots; the statuses are all 0, and every spot comes once."""
    done = np.zeros(len(centers), int)
    async with SpotStream(server.address, StreamOptions(batch_rows=64)) as stream:
        async for batch in stream.predict(slide, centers, scale=scale):
            assert not batch.status.any()
            done[batch.rows] += 1
    assert (done == 1).all()


def test_a_grid_of_100_um_over_a_whole_section(server, pyramid):
    reader = open_slide(pyramid)
    centers = grid(reader.size, tissue_mask(reader.thumbnail(MASK_PX)), 100 / reader.resolution.mpp).centers
    assert len(centers) > 500
    found = counted(server, lambda: score(server, f"wsi/{pyramid.name}", centers))
    assert found["spots"] == len(centers)
    assert found["decoded_px"] / needed_px(pyramid, centers) <= 1.10
    assert found["cached_tiles"] > found["decoded_tiles"]


def test_a_dense_grid_over_a_sixth_of_a_slide_by_a_network_of_other_sizes(svs, roots, tmp_path):
    small_views = make_release(tmp_path, M2OSTConfig(**{**NARROW.to_dict(), "image_px": 64, "n_levels": 2}))
    ys, xs = np.mgrid[8:500:16, 8:2220:16]
    centers = np.stack([xs.ravel(), ys.ravel()], axis=1)
    with TritonServer(ServerOptions(release=small_views, roots=roots)) as server:
        # The windows are those of views of 224 px; a network of smaller ones takes a fraction of the time.
        scale = WINDOW_PX / (2 * 64)
        found = counted(server, lambda: score(server, f"wsi/{svs.name}", centers, scale))
        expression, _ = by_server(server.address, f"wsi/{svs.name}", centers[::500], scale)
    expected = by_pytorch(small_views, svs, centers[::500], scale)
    np.testing.assert_allclose(expression, expected, rtol=0, atol=1e-4)
    assert found["spots"] == len(centers) == 31 * 139
    assert found["decoded_px"] / needed_px(svs, centers) <= 1.10
    # Read window by window it would move 2.4 MB a spot.
    assert found["moved_bytes"] < len(centers) * (2 * 3 * 64 * 64 + 3 * WINDOW_PX**2 // 10)


def test_random_spots_in_random_order(server, pyramid):
    reader = open_slide(pyramid)
    centers = np.random.default_rng(4).integers((0, 0), reader.size, (400, 2))

    async def requests():
        async with triton.InferenceServerClient(server.address) as client:
            for first in range(0, 400, 50):
                rows = centers[first : first + 50]
                inputs = raw_request([f"wsi/{pyramid.name}"] * len(rows), rows)
                answer = await client.infer("m2ost_slide", inputs)
                assert not answer.as_numpy("STATUS").any()

    found = counted(server, requests)
    assert found["spots"] == 400
    assert found["decoded_px"] / needed_px(pyramid, centers) <= 1.25


def test_two_slides_at_once_share_the_server_evenly_and_decode_nothing_twice(server, crops):
    ys, xs = np.mgrid[20:640:32, 20:768:32]
    centers = np.stack([xs.ravel(), ys.ravel()], axis=1)
    progress = {"a.tif": 0, "b.tif": 0}
    behind = []

    async def follow(slide):
        async with SpotStream(server.address, StreamOptions(batch_rows=32)) as stream:
            async for batch in stream.predict(f"crops/{slide}", centers):
                progress[slide] += len(batch.rows)
                behind.append(abs(progress["a.tif"] - progress["b.tif"]))

    async def both():
        await asyncio.gather(follow("a.tif"), follow("b.tif"))

    found = counted(server, both)
    assert progress == {"a.tif": len(centers), "b.tif": len(centers)}
    # Neither is ever ahead by more than both windows of requests hold.
    assert max(behind) <= 2 * 4 * 32
    assert found["decoded_px"] <= sum(needed_px(crops / slide, centers) for slide in progress)


def test_lower_levels_serve_where_a_request_allows_them(server, pyramid):
    centers = np.array([(4000, 5000), (4100, 5000)])

    async def scored(pyramid_allowed):
        async with SpotStream(server.address) as stream:
            found = np.empty((2, len(stream.info.genes)), np.float32)
            async for batch in stream.predict(f"wsi/{pyramid.name}", centers, pyramid=pyramid_allowed):
                found[batch.rows] = batch.expression
            return found

    async def together():
        return await asyncio.gather(scored(False), scored(True), scored(False))

    native, lower, again = asyncio.run(together())
    np.testing.assert_allclose(again, native, rtol=0, atol=1e-5)
    assert np.abs(lower - native).max() > 1e-4


def test_a_timeline_shows_that_stages_work_at_once(narrow_release, pyramid, tmp_path):
    timeline, trace = Timeline(), tmp_path / "triton.json"
    # Apart enough that every request has regions of its own to read.
    ys, xs = np.mgrid[400:9500:800, 400:9000:800]
    centers = np.stack([xs.ravel(), ys.ravel()], axis=1)

    async def score_all(address):
        async with SpotStream(address, timeline=timeline) as stream:
            async for _ in stream.predict(f"wsi/{pyramid.name}", centers):
                pass

    options = ServerOptions(release=narrow_release, roots=SlideRoots({"wsi": pyramid.parent}), trace=trace)
    with TritonServer(options) as server:
        asyncio.run(score_all(server.address))
    requests = [span for span in timeline.spans if span.name == "m2ost_slide"]
    assert len(requests) == -(-len(centers) // 32)
    first, last = min(span.start_ns for span in requests), max(span.end_ns for span in requests)
    timeline.add_server(trace)
    tiler, engine = (
        [span for span in timeline.spans if span.lane == f"{model} compute" and first <= span.start_ns <= last]
        for model in ("slide_tiler", "m2ost")
    )
    assert sum(span.facts["requests"] for span in tiler) >= len(requests)
    assert overlap(tiler, engine)
    reading, cutting = ([span for span in timeline.spans if span.name == name] for name in ("read", "cut"))
    assert overlap(reading, cutting)


def overlap(some, others):
    return any(a.start_ns < b.end_ns and b.start_ns < a.end_ns for a in some for b in others)
