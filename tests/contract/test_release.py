"""A release is what its manifest describes, file by file and engine by engine."""

import hashlib
from dataclasses import replace

import pytest
from m2ost_contract import EngineInfo, Manifest, ManifestError, Release, ReleaseError, ViewGeometry

from tests.support.releases import engine_plan

PLAN = engine_plan()
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
    engine = replace(ENGINE, onnx_sha256=files["m2ost/1/model.onnx"])
    Manifest(engine, {}, {}, {}, files, engines=(PLAN,)).write(tmp_path)
    return tmp_path


def test_a_release_as_it_was_made(release):
    opened = Release.open(release)
    assert opened.manifest.engines == (PLAN,)
    assert opened.plan("tensorrt", "8.9").max_rows == 256
    assert opened.onnx.read_bytes() == b"graph"
    opened.check()


def test_every_file_that_is_missing_truncated_or_swapped_is_named(release):
    (release / "m2ost" / "config.pbtxt").unlink()
    (release / PLAN.file).write_bytes(b"an eng")
    (release / "m2ost/1/model.onnx").write_bytes(b"hparg")
    with pytest.raises(ReleaseError, match="export it anew") as error:
        Release.open(release).check()
    assert "m2ost/config.pbtxt: No such file" in str(error.value)
    assert "m2ost/1/model-sm89.plan: truncated, changed or swapped: sha256 is" in str(error.value)
    assert "m2ost/1/model.onnx: truncated, changed or swapped: sha256 is" in str(error.value)


def test_an_engine_without_a_field_is_a_damaged_manifest(release):
    path = release / "manifest.json"
    path.write_text(path.read_text().replace('"inspected": true,', ""))
    with pytest.raises(ManifestError, match="inspected"):
        Manifest.read(release)
