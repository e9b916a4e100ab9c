"""A release is served only as its manifest describes it, and only where an engine of it runs."""

import hashlib
from dataclasses import replace

import pytest
from m2ost_preprocess.contract import EngineInfo, Manifest, ManifestError, ViewGeometry
from m2ost_preprocess.engine_plan import EnginePlan
from m2ost_preprocess.gpu import Driver, find_driver
from m2ost_preprocess.releases import ReleaseError, changed_files, check_files, check_servable, find_plan

PLAN = EnginePlan(
    toolkit="tensorrt",
    version="10.13.3",
    compute_capability="8.9",
    precision="fp16",
    file="m2ost/1/model-sm89.plan",
    sha256="",
    onnx_sha256="",
    size_bytes=9,
    rows=(1, 32, 256),
    network={"MATRIX_MULTIPLY HALF": 142},
    attention=36,
    weights_bytes=14_000_000,
    activation_bytes=None,
    inspected=True,
    engine={"gemm FP16": 100},
    fp32_size_bytes=None,
    driver="13.0",
)
ENGINE = EngineInfo(
    genes=("g",),
    views=ViewGeometry(),
    mpp=None,
    target="t",
    trained=True,
    precision="fp16",
    checkpoint_sha256="a",
    onnx_sha256="b",
    release_sha256="c",
)


@pytest.fixture
def release(tmp_path):
    files = {}
    for name, content in (("m2ost/1/model.onnx", b"graph"), (PLAN.file, b"an engine"), ("m2ost/config.pbtxt", b"x")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
        files[name] = hashlib.sha256(content).hexdigest()
    Manifest(ENGINE, {}, {}, {}, files, engines=(PLAN,)).write(tmp_path)
    return tmp_path


def test_a_release_as_it_was_made(release):
    manifest = Manifest.read(release)
    assert manifest.engines == (PLAN,)
    assert changed_files(release, manifest) == []
    check_servable(release, manifest, "tensorrt", compute_capabilities=["8.9"])


def test_every_file_that_is_missing_truncated_or_swapped_is_named(release):
    (release / "m2ost" / "config.pbtxt").unlink()
    (release / PLAN.file).write_bytes(b"an eng")
    (release / "m2ost/1/model.onnx").write_bytes(b"hparg")
    with pytest.raises(ReleaseError, match="export it anew") as error:
        check_files(release, Manifest.read(release))
    assert "m2ost/config.pbtxt is missing" in str(error.value)
    assert "m2ost/1/model-sm89.plan: sha256 is" in str(error.value)
    assert "m2ost/1/model.onnx: sha256 is" in str(error.value)


@pytest.mark.parametrize(
    ("change", "here", "words"),
    [
        ({}, ["9.0", "8.0"], r"for compute capability 8\.9, the GPUs of this machine have 9\.0, 8\.0; .*build-engine"),
        ({}, [], r"cannot be found \(no CUDA driver\)"),
        ({"version": "10.14.0"}, ["8.9"], r"built by tensorrt 10\.14\.0 and runs with no other, here is 10\.13\.3"),
        ({"rows": (1, 8, 64)}, ["8.9"], "at most 64 rows, a request may have 256"),
        ({"toolkit": "tensorrt-rtx"}, ["8.9"], "no tensorrt engine"),
    ],
)
def test_an_engine_that_does_not_run_here_is_refused(release, change, here, words):
    manifest = replace(Manifest.read(release), engines=(replace(PLAN, **change),))
    with pytest.raises(ReleaseError, match=words):
        find_plan(manifest, "tensorrt", compute_capabilities=here, version="10.13.3")


def test_bf16_is_not_served_on_a_cpu(release):
    manifest = replace(Manifest.read(release), engine=replace(ENGINE, precision="bf16"))
    with pytest.raises(ReleaseError, match="no bf16 kernels on a CPU"):
        check_servable(release, manifest, "cpu", compute_capabilities=[])
    check_servable(release, manifest, "onnxruntime", compute_capabilities=[])


def test_an_engine_without_a_field_is_a_damaged_manifest(release):
    path = release / "manifest.json"
    path.write_text(path.read_text().replace('"inspected": true,', ""))
    with pytest.raises(ManifestError, match="inspected"):
        Manifest.read(release)


def test_the_driver_answers_or_is_not_there():
    driver = find_driver()
    assert (driver == Driver()) or driver.cuda_version
    assert all(gpu.name and gpu.compute_capability.replace(".", "").isdigit() for gpu in driver.gpus)
