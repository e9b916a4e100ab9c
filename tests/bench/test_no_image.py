"""The no-image table: the paper's spots, the authors' split, and what a constant scores."""

import json

import numpy as np
import pytest
from m2ost.checkpoint import read_panel
from m2ost.data.errors import DataError
from m2ost.data.her2 import read_without_images
from m2ost_bench.no_image import SECTIONS, authors_split, measure, to_markdown

from tests.support.data import REPOSITORY, shared_file


def test_the_authors_split_has_every_section_once():
    train, test = authors_split()
    assert (len(SECTIONS), len(train), len(test)) == (36, 25, 11)
    assert sorted((*train, *test)) == sorted(SECTIONS)


@pytest.fixture(scope="module")
def panel():
    return read_panel(shared_file("gene_panels/her2.txt"))


@pytest.fixture(scope="module")
def read(heavy):
    """Three sections of two patients, without their images."""
    names = ("B4", "C2", "C4")
    return dict(zip(names, read_without_images(shared_file("her2st"), list(names)), strict=True))


def test_what_two_constants_score_on_a_section_and_what_they_tell_of_it(read, panel):
    report = measure(list(read.values()), panel)
    assert (report["sections"], report["split"]["train"], report["split"]["test"]) == (3, ["B4", "C2"], ["C4"])
    assert "C6" in report["missing"]
    same_patient, c4 = (read[name].expressed(panel) for name in ("C2", "C4"))
    assert report["test_spots"] == len(c4)
    constant, truth = same_patient.targets(panel).mean(axis=0), c4.targets(panel)
    by_spot = [np.corrcoef(spot, constant)[0, 1] for spot in truth]
    scores = report["predictors"]["same-patient mean"]
    assert scores["r_spot_mean"] == pytest.approx(np.mean(by_spot), abs=1e-5)
    assert scores["rmse_spot_mean"] == pytest.approx(np.sqrt(((truth - constant) ** 2).mean(axis=1)).mean(), abs=1e-5)
    assert scores["r_spot_mean"] > report["predictors"]["training mean"]["r_spot_mean"]
    assert scores["r_gene_in_a_section"] == 0, "it tells nothing of where a gene is expressed"


def test_sections_that_cannot_be_split_are_refused(read, panel):
    with pytest.raises(DataError, match="1 training and 0 test sections"):
        measure([read["B4"]], panel)
    with pytest.raises(DataError, match="is there twice"):
        measure([read["B4"]] * 2, panel)
    with pytest.raises(DataError, match="C4: no training section of its patient"):
        measure([read["B4"], read["C4"]], panel)


def test_the_record_in_words():
    report = json.loads((REPOSITORY / "benchmarks" / "no-image-her2.json").read_text())
    assert "| same-patient mean | 49.31 | 2.88 | 0.00 | 0.33 |" in to_markdown(report)
