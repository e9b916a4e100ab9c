"""A section of HER2+ that a pathologist has labelled."""

import json

import numpy as np
import pytest
from m2ost_bench.domains import to_markdown
from m2ost_domains.expression import read_expression
from m2ost_domains.labels import agreement, read_labels
from m2ost_domains.methods import GRAPH_METHODS, METHODS, DomainOptions
from m2ost_domains.run import run

from tests.support.data import REPOSITORY, shared_file

RECORD = REPOSITORY / "benchmarks" / "domains-her2.json"


@pytest.fixture(scope="module")
def section():
    counts = shared_file("her2st_counts/counts/A1.tsv.gz")
    return read_expression(counts, spots=shared_file("her2st_counts/spots/A1_selection.tsv"))


def agreed(section, method, out):
    """What the record says of a method on the section, what is found here, and what the same finds in mixed labels."""
    file = shared_file("her2st_counts/labels/A1_labeled_coordinates.tsv")
    labels, kept = read_labels(file), json.loads(RECORD.read_text())["sections"]["A1"]
    assert kept["k"] == len(set(labels.values()))
    done = run(section, DomainOptions(k=kept["k"], method=method), out, labels=file)
    assert done.record["agreement"]["spots"] == kept["labelled"]
    rng = np.random.default_rng(0)
    mixed = [dict(zip(labels, rng.permutation(list(labels.values())), strict=True)) for _ in range(100)]
    chance = [agreement(section.spot_names, done.domains.tolist(), each).ari for each in mixed]
    return kept["methods"][method]["ari"], done.record["agreement"]["ari"], chance


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(GRAPH_METHODS)))
def test_a_labelled_section_gives_what_was_recorded(section, tmp_path, method):
    recorded, found, chance = agreed(section, method, tmp_path)
    # Another processor rounds otherwise, which may move a few spots.
    assert abs(found - recorded) < 0.1
    assert found > max(chance)


@pytest.mark.usefixtures("heavy")
@pytest.mark.parametrize("method", GRAPH_METHODS)
def test_a_network_trained_on_a_labelled_section_agrees_with_its_labels_beyond_chance(section, tmp_path, method):
    _, found, chance = agreed(section, method, tmp_path)
    assert found > max(chance)


def test_the_record_in_words():
    report = json.loads(RECORD.read_text())
    assert len(report["sections"]) == 8
    assert "| mean | | | **" in to_markdown(report)
