"""HER2+ as published: counts of spots and targets, against a computation of the test's own."""

import csv
import gzip
import math

import numpy as np
import pytest
from m2ost.checkpoint import read_panel
from m2ost.data.datasets import read_sections

from tests.support.data import shared_file

pytestmark = pytest.mark.usefixtures("heavy")

SPOTS = {"C2": 186, "B4": 281}
"""Sections of two patients, not in alphabetical order; spots with a position, counts, and a panel total over 0."""


@pytest.fixture(scope="module")
def root():
    return shared_file("her2st")


@pytest.fixture(scope="module")
def panel():
    return read_panel(shared_file("gene_panels/her2.txt"))


@pytest.fixture(scope="module")
def sections(root):
    return {section.name: section for section in read_sections(root, list(SPOTS))}


def by_hand(root, name, panel):
    """Panel counts by spot, and the names of the spots with a position: csv and gzip only."""
    with gzip.open(root / "counts" / f"{name}.tsv.gz", "rt", encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t")
        header = next(rows)
        columns = [header.index(gene) for gene in panel]
        counts = {row[0]: [float(row[column]) for column in columns] for row in rows}
    with (root / "spots" / f"{name}_selection.tsv").open(encoding="utf-8", newline="") as stream:
        positions = {
            f"{row['x']}x{row['y']}": (float(row["pixel_x"]), float(row["pixel_y"]))
            for row in csv.DictReader(stream, delimiter="\t")
            if row["selected"] == "1"
        }
    return counts, positions


@pytest.mark.parametrize("name", SPOTS)
def test_the_spots_of_the_article(root, panel, sections, name):
    counts, positions = by_hand(root, name, panel)
    both = [spot for spot in positions if spot in counts]
    expected = [spot for spot in both if sum(counts[spot]) > 0]
    section = sections[name].expressed(panel)
    assert len(section) == len(expected) == SPOTS[name]
    assert section.spot_names == tuple(expected)
    assert section.centers.tolist() == [list(positions[spot]) for spot in expected]
    reasons = {
        "without counts": len(positions) - len(both),
        "without a position": len(counts) - len(both),
        "zero total": len(both) - len(expected),
    }
    assert section.left_out == {reason: n for reason, n in reasons.items() if n}
    targets = section.targets(panel)
    for row in (0, len(expected) - 1):
        values = counts[expected[row]]
        np.testing.assert_allclose(targets[row], [math.log1p(1e6 * v / sum(values)) for v in values], rtol=1e-6)


def test_patient_and_resolution_go_by_letter(sections):
    assert {section.patient for section in sections.values()} == {"B", "C"}
    assert all(section.mpp == 0.688 for section in sections.values())


def test_the_sections_asked_for_come_in_that_order(sections):
    assert list(sections) == ["C2", "B4"]
