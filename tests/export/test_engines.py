"""Engines: built for real by TensorRT-RTX without a GPU, and refused when they are not what was asked for."""

import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from m2ost_contract import Manifest, ReleaseError, changed_files, plan_for, sha256_file
from m2ost_export.engine_release import add_engines, cached_engines
from m2ost_export.engines import EngineOptions, plans
from m2ost_export.engines.builder import build_engine, check_network_precision, check_weights_bytes
from m2ost_export.engines.gpu import Driver, Gpu, find_driver
from m2ost_export.engines.inspector import check_engine_precision, count_engine_layers
from m2ost_export.engines.plans import Twin, check_size
from m2ost_export.engines.toolkit import Toolkit, load_toolkit
from m2ost_export.errors import EngineBuildError, ExportError
from m2ost_export.onnx_files import as_float32
from m2ost_serving.repository import parse_config
from onnx import load, numpy_helper, save_model

from .networks import SMALL

RTX = "tensorrt-rtx"


def options(*capabilities, **others):
    return EngineOptions(toolkit=RTX, compute_capabilities=capabilities, **others)


@pytest.fixture(scope="module")
def rtx() -> Toolkit:
    return load_toolkit(RTX)


def built_from(rtx, graph, precision):
    settings = {"precision": precision, "compute_capability": "8.9", "opt_rows": 8}
    return build_engine(rtx, graph.SerializeToString(), SMALL.views, **settings)


def test_a_graph_of_another_precision_is_refused(rtx, small_fp16):
    twin = as_float32(small_fp16.graph)
    with pytest.raises(EngineBuildError, match=r"in fp16 was asked for .* are: 41 in FLOAT; .*--precision fp16"):
        built_from(rtx, twin, "fp16")
    with pytest.raises(EngineBuildError, match=r"in fp32 was asked for .* 40 in HALF, 1 in FLOAT"):
        built_from(rtx, small_fp16.graph, "fp32")


def test_one_matrix_multiplication_that_fell_back_is_enough():
    check_network_precision({"MATRIX_MULTIPLY HALF": 142, "MATRIX_MULTIPLY FLOAT": 1, "SOFTMAX FLOAT": 9}, "fp16")
    with pytest.raises(EngineBuildError, match="141 in HALF, 2 in FLOAT"):
        check_network_precision({"MATRIX_MULTIPLY HALF": 141, "MATRIX_MULTIPLY FLOAT": 2}, "fp16")
    with pytest.raises(EngineBuildError, match="none"):
        check_network_precision({}, "fp16")


def test_an_engine_as_large_as_its_float32_twin_is_refused():
    twin = Twin(size_bytes=40_000_000, saving_bytes=14_000_000)
    check_size(29_000_000, twin, "fp16")
    with pytest.raises(EngineBuildError, match=r"39,000,000 bytes and its float32 twin 40,000,000"):
        check_size(39_000_000, twin, "fp16")


def test_what_the_parser_cannot_read_is_quoted(rtx, small_fp16):
    graph = type(small_fp16.graph)()
    graph.CopyFrom(small_fp16.graph)
    next(node for node in graph.graph.node if node.op_type == "Gelu").op_type = "Gellu"
    with pytest.raises(EngineBuildError, match=r"tensorrt-rtx .* cannot parse the graph: .*operator 'Gellu'"):
        built_from(rtx, graph, "fp16")


def test_other_inputs_are_refused(rtx, small_fp16):
    graph = type(small_fp16.graph)()
    graph.CopyFrom(small_fp16.graph)
    graph.graph.output[0].name = "SOMETHING"
    last = next(node for node in graph.graph.node if "EXPRESSION" in node.output)
    last.output[:] = ["SOMETHING"]
    with pytest.raises(EngineBuildError, match="takes and gives"):
        built_from(rtx, graph, "fp16")


def test_a_gpu_that_the_builder_does_not_offer(small_release, tmp_path):
    with pytest.raises(EngineBuildError, match=r"capability 9\.0: tensorrt-rtx 1\.\S+ builds for 7\.5, 8\.0, .*12\.0"):
        add_engines(small_release, tmp_path / "release", options("8.9", "9.0"))
    assert not list(tmp_path.iterdir())


def test_tensorrt_builds_for_the_gpus_at_hand_only():
    class AsTensorRT:
        __version__ = "10.13.0"

    toolkit = Toolkit("tensorrt", AsTensorRT)
    here = Driver("13.0", (Gpu("NVIDIA H100", "9.0"), Gpu("NVIDIA H100", "9.0")))
    assert toolkit.targets((), here) == ("9.0",)
    with pytest.raises(EngineBuildError, match=r"compute capability 8\.9: the GPUs of this machine have 9\.0"):
        toolkit.targets(("8.9",), here)
    with pytest.raises(EngineBuildError, match=r"no CUDA driver.*m2ost build-engine"):
        toolkit.targets((), Driver())


def test_no_gpu_and_no_compute_capability(rtx):
    with pytest.raises(EngineBuildError, match=r"no compute capability given: tensorrt-rtx .* builds for"):
        rtx.targets((), Driver())


def test_a_toolkit_that_is_missing_old_or_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineBuildError, match=r"pypi\.nvidia\.com '.*\[tensorrt\]'"):
        load_toolkit("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", type("Old", (), {"__version__": "10.9.0.34"}))
    with pytest.raises(EngineBuildError, match=r"10\.9\.0\.34 is too old, 10\.13 is needed"):
        load_toolkit("tensorrt")
    with pytest.raises(EngineBuildError, match="one of tensorrt, tensorrt-rtx"):
        load_toolkit("openvino")


@pytest.mark.parametrize("rows", [0, 257])
def test_a_batch_outside_the_profile(rows):
    with pytest.raises(EngineBuildError, match=f"--opt-rows {rows}: .* 1 to 256 rows"):
        options(opt_rows=rows)


def test_engines_are_added_by_making_a_release_out_of_a_release(small_release, tmp_path):
    before = {path: sha256_file(path) for path in small_release.rglob("*") if path.is_file()}
    first = add_engines(small_release, tmp_path / "first", options("8.9"))
    second = add_engines(tmp_path / "first", tmp_path / "second", options("8.6", opt_rows=64))
    assert {path: sha256_file(path) for path in small_release.rglob("*") if path.is_file()} == before
    source = Manifest.read(small_release)
    assert [plan.compute_capability for plan in second.engines] == ["8.9", "8.6"]
    assert second.engines[0] == first.engines[0]
    assert second.engines[1].rows == (1, 64, 256)
    assert second.engines[0].sha256 != second.engines[1].sha256
    assert plan_for(second.engines, RTX, "8.6") == second.engines[1]
    identities = {m.engine.release_sha256 for m in (source, first, second)}
    assert len(identities) == 3, "a release with other engines is another release"
    assert replace(second.engine, release_sha256="") == replace(source.engine, release_sha256="")
    assert (second.parity, second.graph) == (source.parity, source.graph)
    assert not changed_files(tmp_path / "second", second.files)
    profile = parse_config((tmp_path / "second" / "m2ost" / "configs" / "tensorrt.pbtxt").read_text())
    assert not profile.cc_model_filenames, "Triton cannot run RTX's plans"


def test_engines_in_a_cache_are_built_once_for_each_release_gpu_and_version(small_release, tmp_path):
    built = cached_engines(small_release, tmp_path, options("8.9"))
    assert built.name.startswith(f"{Manifest.read(small_release).engine.release_sha256[:16]}-tensorrt-rtx-")
    assert "-sm8.9-" in built.name
    made = (built / "manifest.json").stat().st_mtime_ns
    assert cached_engines(small_release, tmp_path, options("8.9")) == built
    assert ((built / "manifest.json").stat().st_mtime_ns, len(list(tmp_path.iterdir()))) == (made, 1)
    (plan,) = Manifest.read(built).engines
    (built / plan.file).write_bytes(b"cut")
    with pytest.raises(ReleaseError, match=plan.file):
        cached_engines(small_release, tmp_path, options("8.9"))


def test_each_engine_is_built_and_read_on_a_gpu_that_it_is_for(small_release, tmp_path, monkeypatch):
    gpus = Gpu("NVIDIA A100", "8.0", 0), Gpu("NVIDIA L4", "8.9", 1), Gpu("NVIDIA L4", "8.9", 2)
    using, seen = [], []

    @contextmanager
    def current(gpu):
        using.append(gpu.ordinal)
        yield
        using.pop()

    def at_work(function, seen):
        return lambda *args, **options: (seen.append((function.__name__, *using)), function(*args, **options))[1]

    def inspect_engine(toolkit, data, shapes):
        assert shapes["VIEW0"][0] == 32
        return TENSORRT_10

    monkeypatch.setattr(plans, "find_driver", lambda: Driver("13.0", gpus))
    monkeypatch.setattr(plans, "current", current)
    monkeypatch.setattr(plans, "build_engine", at_work(plans.build_engine, seen))
    monkeypatch.setattr(plans, "inspect_engine", at_work(inspect_engine, seen))
    manifest = add_engines(small_release, tmp_path / "release", options("8.6", "8.9"))
    # Of the 8.6, which is not here, a float32 twin is built too: its types cannot be read.
    assert seen == [("build_engine",)] * 2 + [("build_engine", 1), ("inspect_engine", 1)]
    assert [(plan.compute_capability, plan.inspected) for plan in manifest.engines] == [("8.6", False), ("8.9", True)]
    assert manifest.engines[1].engine == {"gemm FP16": 2, "Reformat FP16": 1, "kgen FP32": 1}


def test_a_release_with_a_swapped_graph_gets_no_engines(small_release, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(small_release, copy)
    graph = load(copy / "m2ost" / "1" / "model.onnx")
    bias = next(w for w in graph.graph.initializer if w.name == "head.bias")
    values = numpy_helper.to_array(bias).copy()
    values[2] = np.nan
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    save_model(graph, copy / "m2ost" / "1" / "model.onnx")
    with pytest.raises(ReleaseError, match=r"m2ost/1/model\.onnx: truncated, changed or swapped: sha256 is"):
        add_engines(copy, tmp_path / "release", options("8.9"))
    manifest = Manifest.read(copy)
    sha256 = manifest.files["m2ost/1/model.onnx"] = sha256_file(copy / "m2ost" / "1" / "model.onnx")
    replace(manifest, engine=replace(manifest.engine, onnx_sha256=sha256)).write(copy)
    with pytest.raises(ExportError, match=r"weight head\.bias of model\.onnx is not finite"):
        add_engines(copy, tmp_path / "release", options("8.9"))
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def layer(kind, first, second):
    """A layer as the inspector's JSON has it, with one tensor in and one out."""
    return {
        "Name": f"node of {kind}",
        "LayerType": kind,
        "Inputs": [{"Name": "in", "Dimensions": [1, 8], **first}],
        "Outputs": [{"Name": "out", "Dimensions": [1, 8], **second}],
    }


def in_10(kind, first, second):
    return layer(kind, {"Format/Datatype": first}, {"Format/Datatype": second})


def in_11(kind, words, dtype):
    tensor = {"Format": f"Row major linear {words} format (kLINEAR)", "DataType": dtype}
    return layer(kind, tensor, tensor)


TENSORRT_10 = {
    "Layers": [
        in_10("Reformat", "Row major linear UINT8 format", "Row major linear FP16 format"),
        in_10("gemm", "Row major linear FP16 format", "Row major linear FP16 format"),
        in_10("gemm", "Half", "Half"),
        in_10("kgen", "Row major linear FP32", "Row major linear FP32"),
        "a layer told by its name only",
    ],
    "Bindings": ["VIEW0", "EXPRESSION"],
}
TENSORRT_11 = {
    "Layers": [in_11("gemm", "FP32", "Float"), in_11("gemm", "FP32", "Float"), in_11("mha", "FP16", "Half")],
    "I/O Tensors": [{"Name": "VIEW0", "DataType": "UInt8"}],
}


def test_an_inspected_engine_tells_its_types_in_the_words_of_either_version():
    assert count_engine_layers(TENSORRT_10) == {"gemm FP16": 2, "Reformat FP16": 1, "kgen FP32": 1}
    assert count_engine_layers(TENSORRT_11) == {"gemm FP32": 2, "mha FP16": 1}
    assert check_engine_precision(TENSORRT_10, "fp16")
    assert check_engine_precision(TENSORRT_11, "fp32")


def test_an_engine_that_came_out_in_float32_is_refused():
    with pytest.raises(EngineBuildError, match=r"of its 3 layers .* FP32 in 2, FP16 in 1"):
        check_engine_precision(TENSORRT_11, "fp16")


def test_an_engine_of_one_closed_node_tells_nothing():
    closed = in_10("Myelin", "Row major linear UINT8 format", "Row major linear FP32 format")
    closed["Name"] = "{ForeignNode[node__to_copy_2...node_matmul_70]}"
    assert not check_engine_precision({"Layers": [closed]}, "fp16")
    assert not check_engine_precision({"Layers": ["gemm", "gemm"]}, "fp16")


def test_an_engine_whose_weights_grew_is_refused():
    check_weights_bytes(14_388_864, 14_388_298, "fp16")
    with pytest.raises(EngineBuildError, match=r"take 28,155,136 bytes, those of its graph 14,388,298"):
        check_weights_bytes(28_155_136, 14_388_298, "fp16")


def test_the_driver_names_the_gpus_that_nvidias_own_tool_names():
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        assert find_driver() == Driver()
        return
    listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    driver = find_driver()
    assert [f"{gpu.name}, {gpu.compute_capability}" for gpu in driver.gpus] == listed
    assert driver.cuda_version
