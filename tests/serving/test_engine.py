"""Engines: what runs is what was asked for, on the batch as it is; else an error that says why."""

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from m2ost_contract import (
    ONNX_FILE,
    EngineError,
    EngineInfo,
    Manifest,
    Release,
    ReleaseError,
    ViewGeometry,
    install_command,
    plan_for,
    sha256_file,
    supports_version,
)
from m2ost_serving.devices import CudaDevice, DeviceUnavailable, HostDevice
from m2ost_serving.engine import CpuThreads, load_engine
from m2ost_serving.engine.base import KEEP_MEMORY_ROWS
from m2ost_serving.engine.onnx import cuda_session
from m2ost_serving.engine.tensorrt import deserialize, import_runtime

from tests.support.releases import engine_plan

onnx = pytest.importorskip("onnx", reason="graphs are made in the client's environment only")

VIEWS = ViewGeometry(8, (1, 2))
INFO = EngineInfo(
    genes=("mean", "twice"),
    views=VIEWS,
    mpp=None,
    target="t",
    trained=False,
    precision="fp32",
    checkpoint_sha256="a",
    onnx_sha256="",
    release_sha256="c",
)
PLAN = engine_plan()


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A release whose graph is arithmetic: the mean of both views' pixels, and twice that."""
    helper, types = onnx.helper, onnx.TensorProto
    views = [helper.make_tensor_value_info(name, types.UINT8, ["batch", *VIEWS.shape]) for name in VIEWS.names]
    nodes = [helper.make_node("Cast", [name], [f"f{name}"], to=types.FLOAT) for name in VIEWS.names]
    nodes += [
        helper.make_node("Add", [f"f{name}" for name in VIEWS.names], ["sum"]),
        helper.make_node("ReduceMean", ["sum", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("Mul", ["column", "factors"], ["EXPRESSION"]),
    ]
    constants = [
        helper.make_tensor("axes", types.INT64, [3], [1, 2, 3]),
        helper.make_tensor("one", types.INT64, [1], [1]),
        helper.make_tensor("factors", types.FLOAT, [1, 2], [0.5, 1.0]),
    ]
    output = helper.make_tensor_value_info("EXPRESSION", types.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "arithmetic", views, [output], constants)
    folder = tmp_path_factory.mktemp("release")
    (folder / ONNX_FILE).parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / ONNX_FILE)
    sha256 = sha256_file(folder / ONNX_FILE)
    info = replace(INFO, onnx_sha256=sha256)
    Manifest(info, {}, {}, {}, {ONNX_FILE: sha256}, engines=(PLAN,)).write(folder)
    return Release.open(folder)


def batch_of(rows):
    random = np.random.default_rng(rows)
    return {name: random.integers(0, 256, (rows, *VIEWS.shape), np.uint8) for name in VIEWS.names}


ON_A_CPU = {"onnxruntime-cpu": "CPUExecutionProvider", "openvino-cpu": "OpenVINO"}


@pytest.mark.parametrize("rows", [1, 7, KEEP_MEMORY_ROWS + 1, 256])
@pytest.mark.parametrize("choice", ON_A_CPU)
def test_arrays_taken_where_they_lie_give_what_the_graph_says(release, choice, rows):
    engine = load_engine(release, choice)
    batch = batch_of(rows)
    found = engine.run(batch)
    mean = sum(view.astype(np.float64).mean(axis=(1, 2, 3)) for view in batch.values()) / 2
    np.testing.assert_allclose(found, np.stack([mean, 2 * mean], axis=1), rtol=1e-5)
    assert found.dtype == np.float32
    assert ON_A_CPU[choice] in engine.description
    again = engine.run(batch_of(2))
    assert not np.shares_memory(found, again), "a result must outlive the next run"


def test_threads_are_those_that_the_config_asks_for(release):
    threads = CpuThreads.from_parameters({"engine_threads": "1", "engine_spinning": "1"})
    assert threads == CpuThreads(1, spinning=True)
    options = load_engine(release, "onnxruntime-cpu", threads=threads)._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    compiled = load_engine(release, "openvino-cpu", threads=threads)._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    everything = CpuThreads(len(os.sched_getaffinity(0)), spinning=False)
    assert CpuThreads.from_parameters({"engine_threads": "all"}) == CpuThreads.from_parameters({}) == everything
    wrong_ones = ({"engine_threads": "0"}, {"engine_threads": "-1"}, {"engine_spinning": "yes"}, {"engine_runs": "0"})
    for wrong in wrong_ones:
        ((name, value),) = wrong.items()
        with pytest.raises(EngineError, match=f"{name}' is '{value}', not"):
            CpuThreads.from_parameters(wrong)


def test_openvino_computes_in_float32_where_the_processor_has_bfloat16(release):
    compiled = load_engine(release, "openvino-cpu")._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_openvino_that_is_not_installed_is_an_error_and_never_another_engine(release, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=rf"no OpenVINO .*{re.escape(install_command('openvino'))}"):
        load_engine(release, "openvino-cpu")


@pytest.mark.parametrize("choice", ["onnxruntime-cpu", "openvino-cpu"])
def test_two_runs_at_a_time_share_the_threads_and_give_what_each_gives_alone(release, choice):
    threads = CpuThreads.from_parameters({"engine_threads": "3", "engine_runs": "2"})
    assert (threads.a_run, CpuThreads.from_parameters({"engine_threads": "1", "engine_runs": "9"}).runs) == (1, 1)
    engine = load_engine(release, choice, threads=threads)
    assert engine.runs == 2
    assert "3 threads, 2 runs at a time" in engine.description
    batches = [batch_of(rows) for rows in range(2, 34)]
    expected = [engine.run(batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(engine.run, batches * 4))
    for one, alone in zip(found, expected * 4, strict=True):
        np.testing.assert_array_equal(one, alone)


def test_requests_are_joined_in_order_and_a_single_one_is_not_copied():
    device = HostDevice()
    parts = [np.full((n, 2), n, np.uint8) for n in (1, 3)]
    assert device.join(parts).tolist() == [[1, 1]] + [[3, 3]] * 3
    assert device.pointer(device.join(parts[:1])) == device.pointer(parts[0])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda batch: batch.pop("VIEW1"),
        lambda batch: batch.update(VIEW1=batch["VIEW1"].astype(np.float32)),
        lambda batch: batch.update(VIEW1=batch["VIEW1"][:1]),
        lambda batch: batch.update(VIEW1=batch["VIEW1"][:, ::-1]),
        lambda batch: batch.update({name: np.repeat(view, 100, axis=0) for name, view in batch.items()}),
        lambda batch: batch.update({name: view[:0] for name, view in batch.items()}),
    ],
)
def test_a_batch_that_an_address_would_misread_is_refused(release, spoil):
    engine, batch = load_engine(release, "onnxruntime-cpu"), batch_of(3)
    spoil(batch)
    with pytest.raises(ValueError, match=r"VIEW1|rows"):
        engine.run(batch)


def test_an_engine_file_that_is_not_the_releases(release):
    other = Release(release.folder, replace(release.manifest, engine=replace(release.engine, onnx_sha256="0" * 64)))
    with pytest.raises(ReleaseError, match=r"sha256 is .* the manifest says"):
        load_engine(other, "onnxruntime-cpu")


@pytest.mark.parametrize("choice", [None, "", "cuda", "onnxruntime"])
def test_an_engine_that_is_none_is_an_error_and_not_a_default(release, choice):
    with pytest.raises(
        EngineError, match=r"not one of onnxruntime-cpu, .*onnxruntime-cuda, openvino-cpu, openvino-cpu-bf16, tensorrt"
    ):
        load_engine(release, choice)


@pytest.fixture
def no_gpu():
    cupy = pytest.importorskip("cupy")
    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        found = 0
    if found:
        pytest.skip("this machine has a GPU")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("choice", ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
def test_a_gpu_that_is_absent_is_an_error_and_never_the_cpu(release, choice):
    with pytest.raises(DeviceUnavailable, match=r"GPU 0 cannot be used: .*m2ost doctor"):
        load_engine(release, choice)


@pytest.mark.usefixtures("no_gpu")
def test_the_gpu_that_is_asked_for_is_named():
    with pytest.raises(DeviceUnavailable, match="GPU 3"):
        CudaDevice(3)


def test_onnx_runtime_without_cuda_is_an_error_and_never_the_cpu(release):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(EngineError, match=r"no CUDA provider, only .*CPUExecutionProvider"):
        cuda_session(release.onnx)


def test_the_plan_for_a_gpu():
    rtx = replace(PLAN, toolkit="tensorrt-rtx", file="rtx.plan")
    assert plan_for((rtx, PLAN), "tensorrt", "8.9") is PLAN
    assert plan_for((rtx, PLAN), "tensorrt-rtx", "8.9") is rtx
    with pytest.raises(EngineError, match=r"compute capability 9\.0; the release has a tensorrt engine for 8\.9"):
        plan_for((rtx, PLAN), "tensorrt", "9.0")
    with pytest.raises(EngineError, match="for no GPU at all"):
        plan_for((rtx,), "tensorrt", "8.9")


def test_a_plan_is_tied_to_its_version_but_not_to_the_builds_number():
    assert supports_version("10.13.2.6", "10.13.2")
    assert not supports_version("10.13.2.6", "10.13.3.9")
    assert not supports_version("10.13.2.6", "11.13.2.6")


def test_a_runtime_that_is_not_installed_is_named():
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(EngineError, match="tensorrt is not installed"):
            import_runtime("tensorrt")
    else:
        pytest.skip("TensorRT is installed here")


def test_a_plan_that_is_none_is_refused_in_the_runtimes_words(tmp_path):
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed here")
    (tmp_path / "truncated.plan").write_bytes(b"not a plan" * 40)
    with pytest.raises(EngineError, match=r"truncated\.plan: .* cannot read this plan: .*(engine|CUDA)"):
        deserialize(trt, tmp_path / "truncated.plan")


def test_engines_survive_the_manifest(release):
    assert release.manifest.engines == (PLAN,)
