"""The checkpoint that ships: served by default, and as good through a server as its card says."""

import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from m2ost.checkpoint import load
from m2ost.data.datasets import read_sections
from m2ost.data.views import ViewCache
from m2ost.evaluation.judge import evaluate
from m2ost.evaluation.subjects import open_subject
from m2ost.shipped import shipped_checkpoint

from tests.support.data import shared_file

from .releases import by_pytorch

NAME = "C5"
"""A section that training has not seen."""


def test_a_served_section_is_what_the_network_computes_and_scores_as_the_card_says(
    shipped_cache, paper_release, tmp_path
):
    root = shared_file("her2st")
    with shipped_checkpoint() as folder:
        card = load(folder)[1]
    assert card.trained
    assert NAME not in card.provenance["training"]["split"]["train"]
    command = [str(Path(sys.executable).with_name("m2ost")), "predict", str(root / "images" / f"{NAME}.jpg")]
    command += ["--spots", str(root / "spots" / f"{NAME}_selection.tsv"), "--map", "DDX5", "--out", str(tmp_path)]
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(shipped_cache)}
    done = subprocess.run(command, env=environment, text=True, check=True, capture_output=True)
    assert "exporting" not in done.stderr, "it takes the release that lies in the cache"
    adata = anndata.read_h5ad(tmp_path / f"{NAME}.h5ad")[::8]
    expected = by_pytorch(paper_release, root / "images" / f"{NAME}.jpg", adata.obsm["spatial"])
    np.testing.assert_allclose(adata.X, expected, rtol=0, atol=1e-4)
    assert expected.std(axis=0).min() > 1e-2, "a map without contrast would pass by luck"
    subject = open_subject(tmp_path / f"{NAME}.h5ad", ViewCache(tmp_path / "views"))
    assert subject.facts.genes == card.genes
    ((_, _, report),) = evaluate(subject, read_sections(root, [NAME]), [NAME], [], rounds=1)
    stated = card.provenance["evaluation"][NAME]
    assert report.spots == stated["spots"]
    for measure, value in report.scores.items():
        assert value == pytest.approx(stated["scores"][measure], abs=1e-3), measure
