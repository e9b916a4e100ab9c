"""Errors are answers that name the slide; they cost nobody else anything."""

import asyncio
import shutil
import socket
import time

import numpy as np
import pytest
import tritonclient.grpc as triton
from m2ost_client import (
    Ports,
    ReleaseChanged,
    RequestRejected,
    ServerOptions,
    ServerStartError,
    ServerUnavailable,
    SpotStream,
    StreamOptions,
    TritonServer,
)
from m2ost_contract import Manifest, RowStatus, sha256_file
from m2ost_preprocess.decoder import Decoder
from tritonclient.utils import InferenceServerException

from tests.attack.target import ROOT
from tests.compat import evil

from .releases import another
from .servers import by_server, metrics_of, raw_request

SLIDE = "wsi/CMU-1-Small-Region.svs"


def describe(address, slide, **options):
    async def ask():
        async with SpotStream(address) as stream:
            return await stream.slide_info(slide, **options)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("slide", "status"),
    [
        ("wsi/absent.svs", "NOT_FOUND"),
        ("wsi/../her2st/C2.jpg", "NOT_FOUND"),
        ("/etc/passwd", "NOT_FOUND"),
        ("nowhere/a.svs", "NOT_FOUND"),
        ("half/truncated.svs", "INVALID_ARGUMENT"),
        ("text/notes.svs", "INVALID_ARGUMENT"),
        ("wsi", "NOT_FOUND"),
        ("", "NOT_FOUND"),
        ("wsi/\u0000", "NOT_FOUND"),
        ("wsi/é.svs", "NOT_FOUND"),
    ],
)
def test_a_bad_slide_is_named_in_the_answer(narrow_server, slide, status):
    for ask in (describe, lambda a, s: by_server(a, s, [(10, 10)])):
        with pytest.raises(RequestRejected) as error:
            ask(narrow_server.address, slide)
        assert error.value.status == status
        assert (slide.split("/")[-1] or "slide").strip("\0") in str(error.value)
    _, statuses = by_server(narrow_server.address, SLIDE, [(800, 800)])
    assert statuses.tolist() == [RowStatus.OK]


def test_a_symbolic_link_out_of_the_root_is_refused(narrow_server):
    with pytest.raises(RequestRejected, match="leads out of its slide root"):
        by_server(narrow_server.address, f"{ROOT}/link.png", [(5, 5)])


def test_evil_slides_are_refused_by_name_and_others_served(narrow_release, svs, tmp_path):
    from m2ost_preprocess.slides import SlideRoots

    folders = [tmp_path / name for name in ("escapes", "blockers", "bombs", "outside")]
    for folder in folders:
        folder.mkdir()
    paths = [*evil.escapes(folders[0], folders[3]), *evil.blockers(folders[1]), *evil.bombs(folders[2])]
    roots = SlideRoots({folder.name: folder for folder in folders[:3]} | {"wsi": svs.parent})
    with TritonServer(ServerOptions(release=narrow_release, roots=roots)) as server:
        for path in paths:
            name = str(path.relative_to(tmp_path))
            with pytest.raises(RequestRejected) as error:
                describe(server.address, name)
            assert name in str(error.value) or path.name in str(error.value)
            # What absolute.vms says of itself is its own.
            assert str(tmp_path) not in str(error.value).replace(str(folders[3]), "")
            assert ("leads out of its slide root" in str(error.value)) == (name.startswith("escapes/"))
        _, statuses = by_server(server.address, SLIDE, [(800, 800)])
    assert statuses.tolist() == [RowStatus.OK]


def test_a_bad_slide_in_a_mixed_request_costs_only_its_rows(narrow_server):
    with triton.InferenceServerClient(narrow_server.address) as client:
        answer = client.infer("m2ost_slide", raw_request([SLIDE, "wsi/absent.svs", SLIDE], [(800, 800)] * 3))
    ok, gone = RowStatus.OK, RowStatus.SLIDE_UNAVAILABLE
    assert answer.as_numpy("STATUS").ravel().tolist() == [ok, gone, ok]
    expression = answer.as_numpy("EXPRESSION")
    assert np.isnan(expression[1]).all()
    assert np.isfinite(expression[[0, 2]]).all()


def test_an_empty_batch(narrow_server):
    expression, status = by_server(narrow_server.address, SLIDE, np.zeros((0, 2)))
    assert expression.shape == (0, 6)
    assert status.shape == (0,)
    with triton.InferenceServerClient(narrow_server.address) as client, pytest.raises(InferenceServerException):
        client.infer("m2ost_slide", raw_request([], []), client_timeout=20)
    assert by_server(narrow_server.address, SLIDE, [(800, 800)])[1].tolist() == [0]


def test_more_rows_than_a_request_may_have(narrow_server):
    with triton.InferenceServerClient(narrow_server.address) as client:
        assert (
            len(client.infer("m2ost_slide", raw_request([SLIDE] * 256, [(800, 800)] * 256)).as_numpy("STATUS")) == 256
        )
        with pytest.raises(InferenceServerException, match="256"):
            client.infer("m2ost_slide", raw_request([SLIDE] * 257, [(800, 800)] * 257))


@pytest.mark.parametrize("center", [(float("nan"), 1), (1, float("inf")), (1e12, 1)])
def test_centres_that_are_no_positions_never_leave_the_client(narrow_server, center):
    with pytest.raises(ValueError, match="spot 0"):
        by_server(narrow_server.address, SLIDE, [center])


def test_a_pitch_in_micrometres_without_resolution(narrow_server):
    with pytest.raises(RequestRejected, match="--mpp"):
        describe(narrow_server.address, "her2st/C2.jpg", pitch_um=200)
    info = describe(narrow_server.address, "her2st/C2.jpg", pitch_um=200, mpp=0.688)
    assert info.mpp_source == "given"
    assert len(info.names) > 50
    for bad in ({"pitch_um": -1}, {"pitch_um": float("nan")}, {"mpp": 0}, {"mpp": float("inf")}, {"pitch_um": 1e-6}):
        with pytest.raises(RequestRejected) as error:
            describe(narrow_server.address, SLIDE, **bad)
        assert error.value.status == "INVALID_ARGUMENT"


def test_what_slide_info_says_of_a_real_slide(narrow_server):
    info = describe(narrow_server.address, SLIDE, pitch_um=100)
    assert (info.size, info.vendor, info.reader) == ((2220, 2967), "aperio", "cucim")
    assert info.mpp == 0.499
    assert len(info.names) == len(info.centers) > 30
    assert info.thumbnail.shape == (1024, 766, 3)
    corrected = describe(narrow_server.address, "wsi/dicom_cmu1_small_region")
    assert (corrected.reader, "YCbCr" in corrected.note) == ("openslide", True)


def test_the_request_id_reaches_the_tilers_log(narrow_server, narrow_log):
    with triton.InferenceServerClient(narrow_server.address) as client:
        client.infer("m2ost_slide", raw_request([SLIDE], [(800, 800)]), request_id="trace-me-17")
    for _ in range(50):
        found = [r for r in list(narrow_log) if r.get("request_id") == "trace-me-17"]
        if found:
            break
        time.sleep(0.1)
    (record,) = found
    assert (record["event"], record["slides"], record["rows"]) == ("tiled", [SLIDE], 1)
    assert record["level"] == "info"
    assert record["source"].startswith("model.py:")


def test_a_server_that_is_away(tmp_path):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match=rf"{address}: no answer .*m2ost serve"):
        by_server(address, SLIDE, [(1, 1)], retry_for_s=1)
    assert time.monotonic() - began < 20


def test_a_port_that_is_taken(narrow_release):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(ServerStartError, match=f"cannot listen on 127.0.0.1:{port} for grpc"):
            TritonServer(ServerOptions(release=narrow_release, ports=Ports(grpc=port)))


def test_an_onnx_file_that_is_not_the_releases(narrow_release, roots, tmp_path):
    copy = tmp_path / "release"
    shutil.copytree(narrow_release, copy)
    with (copy / "m2ost" / "1" / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with (
        pytest.raises(ServerStartError, match=r"m2ost/1/model\.onnx: truncated, changed or swapped: sha256 is"),
        TritonServer(ServerOptions(release=copy, roots=roots)),
    ):
        pass
    # A manifest that was swapped with it: the engine's own model still knows the graph it belongs to.
    manifest = Manifest.read(copy)
    manifest.files["m2ost/1/model.onnx"] = sha256_file(copy / "m2ost" / "1" / "model.onnx")
    manifest.write(copy)
    with pytest.raises(ServerStartError, match="sha256"), TritonServer(ServerOptions(release=copy, roots=roots)):
        pass


def test_an_overload_is_waited_out(narrow_server):
    # 300 requests at once where 64 may wait: some are refused unread, sent again, and every spot comes back.
    centers = np.random.default_rng(2).integers(200, 2000, (400, 2))

    async def flood():
        async with SpotStream(narrow_server.address, StreamOptions(batch_rows=1, window=300)) as stream:
            done = 0
            async for batch in stream.predict(SLIDE, centers):
                done += len(batch.rows)
                assert not batch.status.any()
            return done, stream.retries

    before = metrics_of(narrow_server)["m2ost_tiler_spots_total{slide_tiler}"]
    done, retries = asyncio.run(flood())
    assert done == 400
    assert retries > 0
    assert metrics_of(narrow_server)["m2ost_tiler_spots_total{slide_tiler}"] - before == 400


def test_leaving_the_loop_cancels_the_rest(narrow_server):
    async def take_one():
        async with SpotStream(narrow_server.address, StreamOptions(batch_rows=1, window=8)) as stream:
            batches = stream.predict(SLIDE, np.full((500, 2), 800))
            async for _ in batches:
                break
            await batches.aclose()
            return [t.get_coro().__qualname__ for t in asyncio.all_tasks() if "SpotStream" in t.get_coro().__qualname__]

    assert asyncio.run(take_one()) == []


def test_a_release_that_changes_in_mid_slide_is_noticed(narrow_release, roots, svs, tmp_path):
    other, servers = another(narrow_release, tmp_path / "other"), []
    centers, few = np.full((40, 2), 800), StreamOptions(batch_rows=1, window=1)

    def serve(release, **ports):
        servers.append(TritonServer(ServerOptions(release=release, roots=roots, **ports)))
        servers[-1].start()
        return servers[-1]

    async def streams_over_a_swap():
        first = await asyncio.to_thread(serve, narrow_release)
        async with SpotStream(first.address, few) as by_name, SpotStream(first.address, few) as by_pixels:
            streams = by_name.predict(SLIDE, centers), by_pixels.predict_local(svs, centers, decoder)
            for stream in streams:
                for _ in range(3):
                    await anext(stream)
            await asyncio.to_thread(first.stop)
            await asyncio.to_thread(serve, other, ports=first.ports)
            for stream in streams:
                with pytest.raises(ReleaseChanged, match="run it again"):
                    async for _ in stream:
                        pass

    try:
        with Decoder() as decoder:
            asyncio.run(streams_over_a_swap())
    finally:
        for server in servers:
            server.stop()
