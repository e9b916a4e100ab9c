"""Requests to the three models, held against the configs that a server reads."""

import numpy as np
import pytest
from google.protobuf import text_format
from m2ost_loadtests.load.requests import (
    BadAnswer,
    infer_request,
    istar_tensors,
    output,
    patches_tensors,
    read_answer,
    slide_tensors,
)
from tritonclient.grpc import model_config_pb2, service_pb2

from tests.support.data import REPOSITORY

ISTAR_CONFIG = """
name: "istar_slide"
max_batch_size: 0
input [
  { name: "SLIDE" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "CENTER" data_type: TYPE_INT32 dims: [ -1, 2 ] },
  { name: "SPOT_DIAMETER_UM" data_type: TYPE_FP64 dims: [ 1 ] },
  { name: "MPP" data_type: TYPE_FP64 dims: [ 1 ] optional: true }
]
output [
  { name: "EXPRESSION" data_type: TYPE_FP32 dims: [ -1, 250 ] },
  { name: "STATUS" data_type: TYPE_INT32 dims: [ -1, 1 ] },
  { name: "INFO" data_type: TYPE_STRING dims: [ 1 ] }
]
"""
CENTERS = np.array([(10.7, 20.2), (-3.5, 4.0), (7.0, 8.0)])
VIEWS = {f"VIEW{i}": np.full((3, 224, 224, 3), i, np.uint8) for i in range(3)}


def served(model):
    return (REPOSITORY / "model_repository" / model / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        (served("m2ost_slide"), slide_tensors("root/é.svs", CENTERS)),
        (served("m2ost_patches"), patches_tensors(VIEWS)),
        (ISTAR_CONFIG, istar_tensors("root/é.svs", CENTERS, spot_diameter_um=55)),
        (ISTAR_CONFIG, istar_tensors("root/é.svs", CENTERS, spot_diameter_um=55, mpp=0.5)),
    ],
    ids=["m2ost_slide", "m2ost_patches", "istar_slide", "istar_slide with µm/px"],
)
def test_a_request_has_the_inputs_of_the_served_config(config, tensors):
    model = text_format.Parse(config, model_config_pb2.ModelConfig())
    request = infer_request(model.name, tensors)
    assert request.model_name == model.name
    expected = {entry.name: entry for entry in model.input}
    assert {t.name for t in request.inputs} >= {name for name, entry in expected.items() if not entry.optional}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        entry = expected[tensor.name]
        kind = model_config_pb2.DataType.Name(entry.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
        assert tensor.datatype == kind
        shape = list(tensor.shape)[1:] if model.max_batch_size else list(tensor.shape)
        assert len(shape) == len(entry.dims)
        assert all(dim in (-1, size) for dim, size in zip(entry.dims, shape, strict=True))
        if kind != "BYTES":
            item = {"UINT8": 1, "INT32": 4, "FP32": 4, "FP64": 8}[kind]
            assert len(raw) == item * np.prod(list(tensor.shape))


def test_what_a_request_carries():
    request = infer_request("m2ost_slide", slide_tensors("r/a", CENTERS), priority=2, parameters={"release": "abc"})
    slide, center, scale = request.raw_input_contents
    assert slide == b"\x03\x00\x00\x00r/a" * 3
    assert np.frombuffer(center, np.int32).tolist() == [10, 20, -4, 4, 7, 8]
    assert np.frombuffer(scale, np.float32).tolist() == [1, 1, 1]
    assert request.parameters["priority"].uint64_param == 2
    assert request.parameters["release"].string_param == "abc"
    assert "priority" not in infer_request("m2ost_slide", slide_tensors("r/a", CENTERS)).parameters


def answer(expression, statuses=None):
    response = service_pb2.ModelInferResponse()
    expression = np.asarray(expression, np.float32)
    response.outputs.add(name="EXPRESSION", datatype="FP32", shape=expression.shape)
    response.raw_output_contents.append(expression.tobytes())
    if statuses is not None:
        response.outputs.add(name="STATUS", datatype="INT32", shape=(len(statuses), 1))
        response.raw_output_contents.append(np.asarray(statuses, np.int32).tobytes())
    return response


def test_answers_are_checked_and_counted():
    nan = np.nan
    read = read_answer(answer([[1, 2], [nan, nan], [nan, nan], [nan, nan]], [0, 1, 1, 77]), 4)
    assert (read.spots, read.without_value) == (1, {"OUTSIDE_SLIDE": 2, "STATUS_77": 1})
    assert read_answer(answer([[1, 2], [3, 4]]), 2).spots == 2
    assert output(answer([[1, 2]]), "INFO") is None
    for response, rows, words in (
        (answer([[1, 2]], [0]), 2, "shape"),
        (answer([[1, 2], [3, 4]], [0]), 2, "STATUS"),
        (answer([[1, nan]], [0]), 1, "not finite"),
        (answer([[1, nan]]), 1, "not finite"),
        (service_pb2.ModelInferResponse(), 1, "None"),
    ):
        with pytest.raises(BadAnswer, match=words):
            read_answer(response, rows)
