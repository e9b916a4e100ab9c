"""Body and tail in bfloat16: served only with the instructions that they passed their gate with."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from m2ost.checkpoint import load, save
from m2ost.data.datasets import read_sections
from m2ost.data.views import ViewCache
from m2ost.metrics import pearson
from m2ost.shipped import shipped_checkpoint
from m2ost_contract import BODY_FILE, ONNX_FILE, OPENVINO_CPU_BF16, TAIL_FILE, EngineError, Release
from m2ost_export.errors import ExportError
from m2ost_export.gate import MIN_R_GENE, Agreement, agreement, predict_all
from m2ost_export.probes import probe_views, slide_views
from m2ost_export.release import build_release
from m2ost_export.split_gate import MEASURED_FILE, SplitGate, measure_split_gate, measured_gate
from m2ost_serving.engine import CpuThreads, load_engine
from m2ost_serving.engine.mixed import MixedOpenVinoEngine, bf16_gain, bf16_instructions
from m2ost_serving.engine.onnx import cpu_session

from tests.support.data import shared_file
from tests.support.machine import need_bf16

from .networks import SMALL, small_network

MOST_R_CHANGE, MEAN_R_CHANGE = 0.002, 0.0005
"""Of r per gene with measured counts: what a gene, and their mean, may lose or gain."""


def gated(release, folder, instructions):
    """A copy of a release whose manifest says that it passed."""
    shutil.copytree(release, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["parity"]["split"]["gate"] = {"instructions": instructions, "measured": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Release.open(folder)


def by_name(views, rows=slice(None)):
    return {name: np.ascontiguousarray(view[rows]) for name, view in zip(SMALL.views.names, views, strict=True)}


@pytest.mark.usefixtures("heavy")
def test_a_release_that_passed_with_other_instructions_is_refused(split_release, tmp_path):
    other = gated(split_release, tmp_path / "other", "amx_int8")
    with pytest.raises(EngineError, match=r"gate of bfloat16 with amx_int8, here is|does not compute in bfloat16"):
        load_engine(other, OPENVINO_CPU_BF16)


@pytest.mark.usefixtures("heavy")
def test_a_release_whose_gate_was_not_run_is_to_be_exported_anew(split_release, tmp_path):
    before = gated(split_release, tmp_path / "before", "avx512_bf16")
    for name in (BODY_FILE, TAIL_FILE):
        del before.manifest.files[name]
    with pytest.raises(EngineError, match=r"no m2ost/1/body\.onnx, .* its gate was not run; export it anew"):
        load_engine(before, OPENVINO_CPU_BF16)


REFUSE = """
import sys
from pathlib import Path
from m2ost_contract import EngineError, Release
from m2ost_serving.engine import load_engine
for choice in ("openvino-cpu", "openvino-cpu-bf16"):
    try:
        print(load_engine(Release.open(Path(sys.argv[1])), choice).description)
    except EngineError as error:
        print("refused:", error)
"""


@pytest.mark.usefixtures("heavy")
def test_a_processor_without_bfloat16_is_refused_and_never_computes_in_float32_instead(split_release, tmp_path):
    release = gated(split_release, tmp_path / "release", "avx512_bf16")
    environment = {**os.environ, "OV_CPU_MAX_ISA": "AVX2"}
    command = [sys.executable, "-c", REFUSE, str(release.folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    served, refused = done.stdout.splitlines()
    assert "float32" in served
    assert refused.startswith("refused: OpenVINO ")
    assert "does not compute in bfloat16 on this machine" in refused
    assert refused.endswith("serve with --profile cpu-openvino or cpu")


def test_one_slide_that_misses_the_gate_is_enough():
    def slide(r, apart=0.01):
        return Agreement("bfloat16", "slide", 9, apart, r, "g0")

    assert SplitGate((slide(MIN_R_GENE), slide(1.0)), "avx512_bf16").passed
    for miss in (slide(MIN_R_GENE - 1e-6), slide(1.0, float("nan"))):
        assert not SplitGate((slide(1.0), miss), "avx512_bf16").passed


def test_a_reduced_precision_has_no_body_to_measure(tmp_path):
    model, card = small_network()
    slides = [("made", probe_views(SMALL.views, 4, 0))]
    with pytest.raises(ExportError, match="made of a network in fp32, not fp16"):
        build_release(model, save(tmp_path / "c", model, card), tmp_path / "r", precision="fp16", slides=slides)
    assert not (tmp_path / "r").exists()


@pytest.mark.usefixtures("heavy")
def test_body_in_bfloat16_and_tail_in_float32_whatever_the_batch(split_release, tmp_path):
    instructions = need_bf16()
    release = gated(split_release, tmp_path / "release", instructions)
    views = probe_views(SMALL.views, 40, seed=3)
    engine = load_engine(release, OPENVINO_CPU_BF16, threads=CpuThreads(1))
    assert f"body bfloat16 by {instructions}, tail float32, 1 threads" in engine.description
    body, tail = (compiled.get_property("INFERENCE_PRECISION_HINT").to_string() for compiled in engine._compiled)
    assert (body, tail) == ("bf16", "f32")
    found = engine.run(by_name(views))
    assert found.dtype == np.float32
    for row in (0, 39):
        alone = engine.run(by_name(views, slice(row, row + 1)))
        np.testing.assert_array_equal(alone[0], found[row])
        assert not np.shares_memory(alone, found), "a result must outlive the next run"
    expected = predict_all(small_network()[0], views)
    assert 0 < np.abs(found - expected).max() < 0.1 * expected.std(axis=0).min()
    assert bf16_gain() > 0


def test_body_and_tail_of_another_network_miss_the_gate(split_release):
    need_bf16()
    model, paths = small_network(1)[0], (split_release / BODY_FILE, split_release / TAIL_FILE)
    gate = measure_split_gate(model, *paths, [f"g{i}" for i in range(6)], [("made", probe_views(SMALL.views, 8, 0))])
    assert not gate.passed
    assert gate.agreements[0].min_r_gene < 0.9
    assert gate.to_dict()["instructions"] == bf16_instructions()


def test_what_was_measured_of_the_shipped_checkpoint_is_kept_with_it():
    with shipped_checkpoint() as folder:
        _, card = load(folder)
        gate = measured_gate(folder, card.sha256)
        assert (folder / MEASURED_FILE).is_file()
        assert measured_gate(folder, "0" * 64) is None, "the figures of other weights"
    assert gate is not None
    assert len({row["views"] for row in gate["measured"]}) >= 2
    assert all(row["min_r_gene"] >= gate["min_r_gene"] == MIN_R_GENE for row in gate["measured"])


@pytest.fixture(scope="module")
def shipped(heavy, paper_release):
    """The shipped network, its card, and its release."""
    need_bf16()
    return *load(paper_release.parent / "checkpoint"), Release.open(paper_release)


def test_the_gate_of_the_shipped_checkpoint_on_a_slide_of_another_laboratory(shipped, svs):
    model, card, release = shipped
    views = slide_views(svs, model.config.views, most=32)
    gate = measure_split_gate(model, *release.split, card.genes, [(svs.name, views)])
    assert gate.passed, gate.in_words()


def test_on_a_section_its_gate_passes_and_agreement_with_measured_counts_hardly_moves(shipped, tmp_path):
    model, card, release = shipped
    shared_file("her2st/counts/C5.tsv.gz")
    (section,) = read_sections(shared_file("her2st"), names=["C5"])
    section = section.expressed(card.genes, card.target)
    views = ViewCache(tmp_path).views(section, model.config.views)
    spots = np.arange(0, len(section), 2)
    parts = [spots[first : first + 32] for first in range(0, len(spots), 32)]
    batches = [{name: views[rows, i] for i, name in enumerate(model.config.views.names)} for rows in parts]
    engine = MixedOpenVinoEngine(*release.split, model.config.views)
    found = np.concatenate([engine.run(batch) for batch in batches])
    plain = cpu_session(release.folder / ONNX_FILE)  # the network in a third of the time
    expected = np.concatenate([plain.run(None, batch)[0] for batch in batches])
    gate = SplitGate((agreement("bfloat16", section.name, expected, found, card.genes),), engine.instructions)
    assert gate.passed, gate.in_words()
    truth = section.targets(card.genes, card.target)[spots]
    change = pearson(truth, found, 0) - pearson(truth, expected, 0)
    assert np.isfinite(change).sum() > 200
    assert np.nanmax(np.abs(change)) <= MOST_R_CHANGE
    assert abs(np.nanmean(change)) <= MEAN_R_CHANGE
