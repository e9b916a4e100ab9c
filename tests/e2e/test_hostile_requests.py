"""Requests that are none cost nobody but their senders anything."""

import asyncio
import threading
import urllib.error
import urllib.request

import grpc
import numpy as np
from m2ost_client import SpotStream, StreamOptions
from tritonclient.grpc import service_pb2

from tests.support.machine import wait_for

from .servers import metrics_of, waiting

GOOD = 8


def message(**changes) -> bytes:
    slides, centers = (
        np.array([["wsi/CMU-1-Small-Region.svs"]] * 2, object),
        np.array([[700, 900], [720, 900]], np.int32),
    )
    request = service_pb2.ModelInferRequest(model_name="m2ost_slide", id="good")
    for name, array in (("SLIDE", slides), ("CENTER", centers), ("SCALE", np.ones((2, 1), np.float32))):
        tensor = request.inputs.add(name=name, shape=array.shape)
        if name == "SLIDE":
            tensor.datatype = "BYTES"
            tensor.contents.bytes_contents.extend(value.encode() for value in array.reshape(-1))
        elif name == "CENTER":
            tensor.datatype = "INT32"
            tensor.contents.int_contents.extend(array.reshape(-1).tolist())
        else:
            tensor.datatype = "FP32"
            tensor.contents.fp32_contents.extend(array.reshape(-1).tolist())
    for name, value in changes.items():
        request.parameters[name].string_param = value
    return request.SerializeToString()


def outcomes(address: str, messages: list[bytes]) -> list[grpc.StatusCode]:
    """What becomes of requests that are all under way at once."""
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        calls = [infer.future(data, timeout=60) for data in messages]
        return [call.code() for call in calls if call.exception() or True]


def test_a_parameter_of_another_type_costs_the_requests_beside_it_nothing(narrow_server):
    good = [message() for _ in range(GOOD)]
    for _ in range(3):
        found = outcomes(narrow_server.address, [*good[: GOOD // 2], message(pyramid="false"), *good[GOOD // 2 :]])
        assert found.pop(GOOD // 2) == grpc.StatusCode.INVALID_ARGUMENT
        assert found == [grpc.StatusCode.OK] * GOOD


def test_an_id_that_is_no_text_costs_the_requests_beside_it_nothing(http_server):
    bad = (
        b'{"id": "\xff\xfe", "inputs": [{"name": "SLIDE", "shape": [1, 1], "datatype": "BYTES", "data": ["wsi/a"]},'
        b'{"name": "CENTER", "shape": [1, 2], "datatype": "INT32", "data": [1, 1]},'
        b'{"name": "SCALE", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}'
    )
    url = f"http://127.0.0.1:{http_server.ports.http}/v2/models/m2ost_slide/infer"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    refused = []

    def send():
        try:
            opener.open(url, bad, timeout=60)
        except urllib.error.HTTPError as error:
            refused.append((error.code, error.read()))

    for _ in range(3):
        senders = [threading.Thread(target=send) for _ in range(4)]
        for sender in senders:
            sender.start()
        assert outcomes(http_server.address, [message() for _ in range(GOOD)]) == [grpc.StatusCode.OK] * GOOD
        for sender in senders:
            sender.join()
    assert {code for code, _ in refused} == {400}
    assert all(b"cannot be read" in words for _, words in refused)


def spots_message(rows: int, shift: int = 0) -> bytes:
    """A request for so many spots of the demo slide, at other places for another shift."""
    centers = np.stack([500 + (np.arange(rows) * 37 + shift * 101) % 1500, 500 + np.arange(rows) * 53 % 1800], axis=1)
    request = service_pb2.ModelInferRequest(model_name="m2ost_slide", id=f"run-{shift}")
    slide = request.inputs.add(name="SLIDE", datatype="BYTES", shape=[rows, 1])
    slide.contents.bytes_contents.extend([b"wsi/CMU-1-Small-Region.svs"] * rows)
    center = request.inputs.add(name="CENTER", datatype="INT32", shape=[rows, 2])
    center.contents.int_contents.extend(centers.reshape(-1).tolist())
    request.inputs.add(name="SCALE", datatype="FP32", shape=[rows, 1]).contents.fp32_contents.extend([1.0] * rows)
    return request.SerializeToString()


def test_less_than_two_batches_are_cut_for_clients_that_have_gone(narrow_server):
    def cut():
        return metrics_of(narrow_server)["m2ost_tiler_spots_total{slide_tiler}"]

    with grpc.insecure_channel(narrow_server.address, [("grpc.enable_http_proxy", 0)]) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        infer(spots_message(32), timeout=60)
        before = cut()
        calls = [infer.future(spots_message(32, shift), timeout=60) for shift in range(40)]
        wait_for(lambda: cut() > before, "spots of the first")
        for call in calls:
            call.cancel()
        gone = cut()
        infer(spots_message(32, 99), timeout=60)
        wait_for(lambda: waiting(narrow_server) == 0, "an empty queue")
    # The next client's are 32; those of the batch under way as the others went are fewer than two batches.
    assert 32 <= cut() - gone < 32 + 64


def test_a_full_server_says_so_and_is_not_left(narrow_server, svs):
    """More streams than the queue holds: each gets all of its spots, none gives up."""

    async def stream(shift):
        async with SpotStream(narrow_server.address, StreamOptions(batch_rows=1, window=8, retry_for_s=5)) as client:
            centers = [(700 + i, 900 + shift) for i in range(24)]
            rows = [row async for batch in client.predict("wsi/CMU-1-Small-Region.svs", centers) for row in batch.rows]
            return sorted(rows), client.retries

    async def all_at_once():
        return await asyncio.gather(*(stream(shift) for shift in range(16)))

    found = asyncio.run(all_at_once())
    assert [rows for rows, _ in found] == [list(range(24))] * 16
    assert sum(retries for _, retries in found) > 0
