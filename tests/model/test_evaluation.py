"""Judging: what sees no image stands beside what does, whatever is judged."""

import json
from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from m2ost import metrics
from m2ost.checkpoint import load
from m2ost.data.datasets import read_sections
from m2ost.data.errors import DataError
from m2ost.data.views import ViewCache
from m2ost.evaluation.judge import (
    PATIENT_MEAN,
    SHUFFLED,
    TRAINING_MEAN,
    constant_predictors,
    evaluate,
    judge,
)
from m2ost.evaluation.prediction import Prediction
from m2ost.evaluation.report import to_markdown
from m2ost.evaluation.ship import ship
from m2ost.evaluation.subjects import open_subject
from m2ost.training.config import config_from
from m2ost.training.run import train
from m2ost_export.release import build_release
from scipy import sparse

from tests.support.command import m2ost

PANEL = ("RED", "BLUE", "BOTH", "HOUSE")
TARGET, TOTAL = "log1p_cpm_panel", "log1p_cpm_total"


@pytest.fixture(scope="module")
def sections(tiny_data):
    return {s.name: s.expressed(PANEL) for s in read_sections(tiny_data)}


@pytest.fixture(scope="module")
def checkpoint(tiny_raw, tmp_path_factory):
    return train(config_from(tiny_raw, "tiny"), tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="module")
def cache(tiny_data):
    return ViewCache(tiny_data / "cache")


def test_constants_come_from_training_and_from_the_patients_other_sections(sections):
    train_sections = [sections["A1"], sections["A2"]]
    constants = constant_predictors(sections["B2"], train_sections, list(sections.values()), PANEL, TARGET)
    a1, a2, b1 = (sections[n].targets(PANEL) for n in ("A1", "A2", "B1"))
    np.testing.assert_allclose(constants[TRAINING_MEAN], np.concatenate([a1, a2]).mean(axis=0))
    np.testing.assert_allclose(constants[PATIENT_MEAN], b1.mean(axis=0))
    alone = constant_predictors(sections["B2"], train_sections, train_sections, PANEL, TARGET)
    assert PATIENT_MEAN not in alone


def test_the_truth_scores_one_and_the_controls_do_not(sections):
    section = sections["B2"]
    truth = section.targets(PANEL)
    constants = constant_predictors(section, [sections["A1"]], list(sections.values()), PANEL, TARGET)
    report = judge(section, Prediction(PANEL, truth), TARGET, constants, rounds=50)
    assert report.scores["r_gene_mean"] == pytest.approx(1)
    assert report.scores["rmse"] == 0
    assert set(report.r_gene) == set(PANEL)
    for control in (TRAINING_MEAN, PATIENT_MEAN):
        assert report.controls[control]["r_gene_mean"] == 0
        assert report.controls[control] == metrics.score(truth, np.tile(constants[control], (len(truth), 1)))
    assert abs(report.controls[SHUFFLED]["r_gene_mean"]) < 0.2
    assert report.controls[SHUFFLED]["rmse"] > 0


def test_spots_without_prediction_are_left_out_and_counted(sections):
    section = sections["B2"]
    values = section.targets(PANEL).copy()
    values[[1, 4]] = np.nan
    report = judge(section, Prediction(PANEL, values), TARGET, {}, rounds=10)
    assert report.spots == len(section) - 2
    assert report.left_out["without prediction"] == 2
    values[:] = np.nan
    with pytest.raises(DataError, match="0 spots have a prediction"):
        judge(section, Prediction(PANEL, values), TARGET, {}, rounds=10)


@pytest.fixture(scope="module")
def release(checkpoint, tmp_path_factory):
    """Of the checkpoint, its values said to be of the other target."""
    out = tmp_path_factory.mktemp("releases") / "release"
    model, card = load(checkpoint)
    build_release(model, replace(card, target=TOTAL), out)
    return out


def test_checkpoint_and_release_predict_alike(checkpoint, release, sections, cache):
    by_torch = open_subject(checkpoint, cache).predict(sections["B2"])
    for path in (release, release / "m2ost" / "1" / "model.onnx"):
        by_onnx = open_subject(path, cache, PANEL, TOTAL).predict(sections["B2"])
        assert by_onnx.genes == by_torch.genes == PANEL
        np.testing.assert_allclose(by_onnx.values, by_torch.values, atol=1e-4)


def test_a_result_is_matched_by_spot_name(sections, cache, tmp_path):
    section = sections["B2"]
    truth = section.targets(PANEL)
    table = anndata.AnnData(truth[::-1][:-1].copy())
    table.obs_names, table.var_names = section.spot_names[::-1][:-1], PANEL
    table.uns["m2ost"] = {"target": TARGET}
    table.write_h5ad(tmp_path / "B2.h5ad")
    prediction = open_subject(tmp_path / "B2.h5ad", cache).predict(section)
    np.testing.assert_array_equal(prediction.values[1:], truth[1:])
    assert np.isnan(prediction.values[0]).all()
    table.obs_names = [f"other{i}" for i in range(table.n_obs)]
    table.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(DataError, match="holds no spot"):
        open_subject(tmp_path / "other.h5ad", cache).predict(section)


@pytest.fixture(scope="module")
def wide_sections(sections):
    """With a gene more than the panel has, so that the two targets differ."""
    more = np.arange(5, 21)[:, None] * 100
    return [
        replace(
            section, genes=(*section.genes, "MORE"), counts=sparse.csr_matrix(sparse.hstack([section.counts, more]))
        )
        for section in sections.values()
    ]


def scores_on_b2(subject, sections):
    [(_, _, report)] = evaluate(subject, sections, ["B2"], [], rounds=1)
    return report.scores


def test_a_release_is_judged_against_its_own_target(checkpoint, release, wide_sections, cache):
    b2 = next(section for section in wide_sections if section.name == "B2")
    predicted = open_subject(checkpoint, cache).predict(b2).values
    expected = {kind: metrics.score(b2.targets(PANEL, kind), predicted) for kind in (TARGET, TOTAL)}
    assert expected[TARGET]["rmse"] != pytest.approx(expected[TOTAL]["rmse"], abs=0.1)
    assert scores_on_b2(open_subject(release, cache), wide_sections) == pytest.approx(expected[TOTAL], abs=1e-3)
    onnx = release / "m2ost" / "1" / "model.onnx"
    for kind in (TARGET, TOTAL):
        subject = open_subject(onnx, cache, PANEL, kind)
        assert scores_on_b2(subject, wide_sections) == pytest.approx(expected[kind], abs=1e-3)
    with pytest.raises(DataError, match="its values are log1p_cpm_total, not log1p_cpm_panel; leave --target out"):
        open_subject(release, cache, target=TARGET)


@pytest.mark.parametrize("target", [TARGET, TOTAL])
def test_a_result_is_judged_against_the_target_that_it_records(wide_sections, cache, tmp_path, target):
    b2 = next(section for section in wide_sections if section.name == "B2")
    path = tmp_path / "B2.h5ad"
    table = anndata.AnnData(b2.targets(PANEL, target))
    table.obs_names, table.var_names = b2.spot_names, PANEL
    table.write_h5ad(path)
    with pytest.raises(DataError, match=r"B2.h5ad: does not say what its values are; give it with --target, log1p"):
        open_subject(path, cache)
    assert scores_on_b2(open_subject(path, cache, target=target), wide_sections)["rmse"] == 0
    table.uns["m2ost"] = {"target": target}
    table.write_h5ad(path)
    assert scores_on_b2(open_subject(path, cache), wide_sections)["rmse"] == 0
    table.uns["m2ost"] = {"target": "counts"}
    table.write_h5ad(path)
    with pytest.raises(DataError, match=r"B2.h5ad: unknown target 'counts'"):
        open_subject(path, cache)


@pytest.mark.parametrize("name", ["missing.onnx", "text.onnx", "text.h5ad", "folder", "notes.txt"])
def test_what_cannot_be_judged_is_named(name, cache, tmp_path):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name != "missing.onnx":
        path.write_text("no such thing")
    with pytest.raises(Exception, match=name) as caught:
        open_subject(path, cache, PANEL, TARGET)
    assert type(caught.value).__name__ in ("DataError", "FileNotFoundError")


def test_a_bare_onnx_file_needs_its_panel_and_its_target(cache, tmp_path):
    with pytest.raises(DataError, match="--panel"):
        open_subject(tmp_path / "x.onnx", cache)
    with pytest.raises(DataError, match=r"x.onnx: does not say what its values are; give it with --target"):
        open_subject(tmp_path / "x.onnx", cache, PANEL)


def test_what_was_trained_on_is_not_judged_on(checkpoint, sections, cache):
    subject = open_subject(checkpoint, cache)
    with pytest.raises(DataError, match="A1: trained on"):
        evaluate(subject, list(sections.values()), ["A1"], ["A1", "A2"])
    with pytest.raises(DataError, match="no section Z9; there are A1"):
        evaluate(subject, list(sections.values()), ["Z9"], [])


def test_the_command_writes_table_and_figures(checkpoint, tiny_data, tmp_path):
    command = ("evaluate", checkpoint, "--data", tiny_data, "--out", tmp_path / "out")
    status, output, errors = m2ost(*command, "--map", "RED", "--cache", tiny_data / "cache")
    assert status == 0, errors
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["trained_on"] == ["A1", "A2"]
    assert [s["section"] for s in found["sections"]] == ["B1", "B2"]
    assert set(found["sections"][0]["controls"]) == {TRAINING_MEAN, PATIENT_MEAN, SHUFFLED}
    table = (tmp_path / "out" / "evaluation.md").read_text()
    assert table.strip() == output.strip()
    assert f"{found['sections'][1]['scores']['r_gene_mean']:.3f}" in table
    drawn = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert drawn == {f"{s}_{kind}.png" for s in ("B1", "B2") for kind in ("components", "RED")}


def test_a_shipped_checkpoint_carries_its_scores_in_half_the_space(checkpoint, sections, cache, tmp_path):
    reports = ship(checkpoint, list(sections.values()), tmp_path / "shipped", cache)
    assert [report.section for report in reports] == ["B1", "B2"]
    model, card = load(tmp_path / "shipped")
    stated = card.provenance["evaluation"]["B2"]
    assert set(stated["controls"]) == {TRAINING_MEAN, PATIENT_MEAN, SHUFFLED}
    again = evaluate(open_subject(tmp_path / "shipped", cache), list(sections.values()), ["B2"], ["A1", "A2"], rounds=1)
    assert again[0][2].scores == pytest.approx(stated["scores"], abs=1e-6)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "shipped", checkpoint)]
    assert sizes[0] < 0.6 * sizes[1]
    original = load(checkpoint)[0].state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, original[key].half().float()), key


def test_the_table_names_what_is_unknown(sections):
    section = sections["B2"]
    report = judge(section, Prediction(PANEL, section.targets(PANEL)), TARGET, {}, rounds=10)
    assert "Training sections unknown" in to_markdown("x.onnx", [report], [])
