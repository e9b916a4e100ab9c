"""Requests that are none cost nobody but their senders anything, and what a server keeps is nobody else's to read."""

import threading
import urllib.error
import urllib.request

import grpc
import numpy as np
from m2ost_client.host import SHM
from tritonclient.grpc import service_pb2

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


def test_shared_memory_is_readable_by_its_owner_alone(narrow_server):
    regions = list(SHM.glob(f"{narrow_server.shm_prefix}*"))
    assert regions
    assert {oct(region.stat().st_mode & 0o777) for region in regions} == {"0o600"}
