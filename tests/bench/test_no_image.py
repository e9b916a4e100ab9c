"""The no-image table: the paper's spots, the authors' split, and what a constant scores."""

import json

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


@pytest.mark.usefixtures("heavy")
def test_the_papers_spots_and_what_two_constants_score_on_them(panel):
    folders = [shared_file("her2st"), shared_file("her2st_counts")]
    report = measure([section for folder in folders for section in read_without_images(folder)], panel)
    kept = json.loads((REPOSITORY / "benchmarks" / "no-image-her2.json").read_text())
    assert (report["sections"], report["spots"], report["missing"]) == (35, 13_417, ["C6"])
    assert report["test_spots"] == 3_464
    for kind, scores in report["predictors"].items():
        assert scores == pytest.approx(kept["predictors"][kind], abs=1e-6)
        assert scores["r_gene_in_a_section"] == 0
    assert report["predictors"]["same-patient mean"]["r_spot_mean"] > 0.4417, "the article's M2OST"


def test_sections_that_cannot_be_split_are_refused(panel):
    b4 = read_without_images(shared_file("her2st"), ["B4"])
    with pytest.raises(DataError, match="1 training and 0 test sections"):
        measure(b4, panel)
    with pytest.raises(DataError, match="is there twice"):
        measure(b4 * 2, panel)
    c4 = read_without_images(shared_file("her2st"), ["C4"])
    with pytest.raises(DataError, match="C4: no training section of its patient"):
        measure([*b4, *c4], panel)


def test_the_record_in_words():
    report = json.loads((REPOSITORY / "benchmarks" / "no-image-her2.json").read_text())
    assert "| same-patient mean | 49.31 | 2.88 | 0.00 | 0.33 |" in to_markdown(report)
