"""`m2ost export` and `m2ost build-engine` as a person types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from m2ost.checkpoint import save
from m2ost_cli.release_commands import export
from m2ost_contract import M2OSTError, Manifest

from tests.support.command import m2ost

from .networks import small_network

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from m2ost_cli.main import main; main()"


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "checkpoint"
    save(folder, *small_network(n_levels=1))
    return folder


@pytest.mark.usefixtures("heavy")
def test_fp16_judged_on_a_slide_with_an_engine(small_checkpoint, svs, tmp_path):
    (tmp_path / "spots.csv").write_text("x,y\n500,500\n800,900\n1500,2000\n1100,1400\n700,2500\n1800,600\n")
    gate = ("--precision", "fp16", "--gate-slide", svs, "--gate-spots", tmp_path / "spots.csv")
    engine = ("--engine", "tensorrt-rtx", "--compute-capability", "8.9")
    status, output, errors = m2ost("export", small_checkpoint, *gate, *engine, "--out", tmp_path / "release")
    assert status == 0, errors
    manifest = Manifest.read(tmp_path / "release")
    for row in manifest.parity["gate"]["measured"]:
        line = f"{row['what']} against PyTorch in float32, {row['rows']} spots ({row['views']}): r per gene at least"
        assert line in output
    assert manifest.parity["gate"]["decided_on"] == svs.name
    assert [row["rows"] for row in manifest.parity["gate"]["measured"]] == [20, 20, 6, 6]
    assert "m2ost/1/model-rtx-sm89.plan: tensorrt-rtx 1." in output
    assert f"{manifest.graph['nodes']} ONNX nodes" in output


def test_an_engine_is_built_without_torch(small_release, tmp_path):
    options = ("--engine", "tensorrt-rtx", "--compute-capability", "12.0", "--opt-rows", "16")
    command = ("build-engine", small_release, *options, "--out", tmp_path / "release")
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (plan,) = Manifest.read(tmp_path / "release").engines
    assert (plan.compute_capability, plan.rows) == ("12.0", (1, 16, 256))
    assert plan.file in done.stdout
    assert json.loads((tmp_path / "release" / "manifest.json").read_text())["engines"][0]["precision"] == "fp16"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int8"}, "one of fp32, fp16, bf16"),
        ({"precision": "fp16", "gate_slide": [Path("a.svs"), Path("b.svs")]}, "looks at one slide"),
        ({"precision": "fp16", "gate_spots": [Path("spots.csv")]}, "give them with --gate-slide"),
        ({"gate_slide": [Path("a.svs"), Path("b.svs")], "gate_spots": [Path("c.csv")]}, "for each or for none"),
        ({"precision": "fp16", "gate_slide": [Path("absent.svs")]}, "absent.svs"),
        ({"gate_slide": [Path("absent.svs")]}, "absent.svs"),
        ({"compute_capability": "8.9"}, "choose one with --engine"),
        ({"engine": "tensorrt-rtx", "compute_capability": "9.0"}, "builds for 7.5"),
        ({"engine": "tensorrt-rtx", "compute_capability": "8.9", "opt_rows": 999}, "1 to 256"),
        ({"engine": "openvino"}, "one of tensorrt, tensorrt-rtx"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_exported(small_checkpoint, tmp_path, options, words):
    with pytest.raises(Exception, match=words) as error:
        export(small_checkpoint, tmp_path / "release", **options)
    assert isinstance(error.value, M2OSTError | OSError)
    assert not list(tmp_path.iterdir())
