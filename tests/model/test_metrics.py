"""Metrics against scipy, and what they say where nothing can be told."""

import subprocess
import sys

import numpy as np
import pytest
from m2ost import metrics
from scipy.stats import pearsonr


@pytest.fixture
def pair():
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(40, 60)) * rng.uniform(0.1, 5, 60)
    return truth, 0.5 * truth + rng.normal(size=truth.shape)


def test_r_is_scipys_along_either_axis(pair):
    truth, prediction = pair
    by_gene = [pearsonr(truth[:, g], prediction[:, g]).statistic for g in range(60)]
    by_spot = [pearsonr(truth[s], prediction[s]).statistic for s in range(40)]
    np.testing.assert_allclose(metrics.pearson(truth, prediction, 0), by_gene, atol=1e-12)
    np.testing.assert_allclose(metrics.pearson(truth, prediction, 1), by_spot, atol=1e-12)


def test_the_scores_are_means_of_those(pair):
    truth, prediction = pair
    by_gene = np.array([pearsonr(truth[:, g], prediction[:, g]).statistic for g in range(60)])
    top = np.argsort(-truth.var(axis=0))[:50]
    scores = metrics.score(truth, prediction)
    assert scores["r_gene_mean"] == pytest.approx(by_gene.mean())
    assert scores["r_gene_median"] == pytest.approx(np.median(by_gene))
    assert scores["r_gene_top50_mean"] == pytest.approx(by_gene[top].mean())
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean((truth - prediction) ** 2)))


def test_a_constant_prediction_tells_nothing_and_a_constant_truth_cannot_be_told(pair):
    truth, prediction = pair
    truth, prediction = truth.astype(np.float32), prediction.astype(np.float32)
    truth[:, 0] = 7.3
    prediction[:, 1] = np.float32(5.1)
    r = metrics.pearson(truth, prediction, 0)
    assert np.isnan(r[0])
    assert r[1] == 0
    assert np.isfinite(metrics.score(truth, prediction)["r_gene_mean"])


def test_the_constant_has_no_r_per_gene_but_one_per_spot(pair):
    truth = pair[0] + np.arange(60)
    scores = metrics.score(truth, np.broadcast_to(truth.mean(axis=0), truth.shape))
    assert scores["r_gene_mean"] == 0
    assert scores["r_spot_mean"] > 0.9


def test_the_bootstrap_repeats_and_holds_the_score(pair):
    truth, prediction = pair
    intervals = metrics.bootstrap(truth, prediction, rounds=200)
    assert intervals == metrics.bootstrap(truth, prediction, rounds=200)
    score = metrics.score(truth, prediction)
    for name in ("r_gene_mean", "rmse"):
        low, high = intervals[name]
        assert low < score[name] < high


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="shape"):
        metrics.pearson(np.zeros((3, 2)), np.zeros((2, 3)), 0)


def test_metrics_need_no_torch():
    subprocess.run([sys.executable, "-c", "import sys; sys.modules['torch'] = None; import m2ost.metrics"], check=True)
