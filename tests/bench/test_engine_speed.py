"""Engines on the CPU: each a process of its own, on real spots, held against PyTorch."""

import json

import numpy as np
import onnx
import pytest
from m2ost.checkpoint import initialise, save
from m2ost_bench.engines.cpu_engines import EngineProcess, Subject
from m2ost_bench.engines.speed import EngineSpeedOptions, measure, to_markdown
from m2ost_export.onnx_files import with_attention
from m2ost_loadtests.errors import LoadTestError

from tests.e2e.releases import NARROW

ENGINES = (
    "onnxruntime-cpu",
    "onnxruntime attention",
    "onnxruntime int8",
    "openvino-cpu",
    "openvino-cpu-bf16",
    "pytorch bf16",
)


@pytest.fixture(scope="module")
def made(heavy, narrow_release):
    return narrow_release.parent


def options(made, slide, **changes):
    stated = {"release": made / "release", "checkpoint": made / "checkpoint", "slide": slide, "only": ENGINES}
    stated |= {"threads": (1,), "batches": (1, 4), "rounds": 2, "most_spots": 6}
    return EngineSpeedOptions(**stated | changes)


def test_every_engine_is_timed_beside_the_plain_one_and_judged_on_real_spots(made, svs):
    report = measure(options(made, svs), lambda words: None)
    json.dumps(report)
    names = {"onnxruntime plain", "pytorch", *ENGINES}
    assert set(report["engines"]) == names
    names -= set(report["refused"])
    assert set(report["refused"]) <= {"openvino-cpu-bf16"}, "only a processor without bfloat16 refuses it"
    assert set(report["truth"]) == names
    assert report["spots"] == 6
    for batch in ("1", "4"):
        assert set(report["speed"]["1"][batch]) == names
        plain = report["speed"]["1"][batch]["onnxruntime plain"]
        assert plain["by_the_clock"] == plain["by_processor_time"] == {"median": 1, "min": 1, "max": 1}
    coarse = {"pytorch bf16", "onnxruntime int8"}
    for name in names - coarse - {"openvino-cpu-bf16"}:
        assert report["truth"][name]["passed"], name
        assert report["truth"][name]["max_abs_diff"] < 1e-5
    for name in coarse:
        assert report["truth"][name]["max_abs_diff"] > 1e-3, f"{name} would have to show"
    assert "| openvino-cpu | " in to_markdown(report)


def test_an_engine_that_cannot_run_is_said_and_none_takes_its_place(made, tmp_path):
    graph = tmp_path / "no.onnx"
    subject = Subject(graph, graph, graph, graph, graph, made / "checkpoint", NARROW.views)
    np.savez(tmp_path / "spots.npz", *(np.zeros((1, *NARROW.views.shape), np.uint8) for _ in NARROW.views.names))
    with EngineProcess("onnxruntime published", subject, 1, tmp_path / "spots.npz") as engine:
        assert "no.onnx" in engine.refusal


def test_a_release_of_another_checkpoint_and_an_engine_that_is_none(made, svs, tmp_path):
    model, card = initialise(NARROW, tuple("abcdef"), seed=1)
    save(tmp_path / "other", model, card)
    with pytest.raises(LoadTestError, match=r"not a float32 release of .*other; run: m2ost export"):
        measure(options(made, svs, checkpoint=tmp_path / "other"), lambda words: None)
    with pytest.raises(LoadTestError, match="no engine tvm; there are: onnxruntime plain, "):
        measure(options(made, svs, only=("tvm",)), lambda words: None)


def test_attention_as_one_operator_leaves_no_softmax(made):
    graph = onnx.load(made / "release" / "m2ost" / "1" / "model.onnx")
    fused = with_attention(graph)
    onnx.checker.check_model(fused)
    count = lambda model, kind: sum(node.op_type == kind for node in model.graph.node)  # noqa: E731
    assert count(fused, "Softmax") == 0
    assert count(fused, "Attention") == count(graph, "Softmax") == 9
    assert count(graph, "MatMul") - count(fused, "MatMul") == 2 * 9
