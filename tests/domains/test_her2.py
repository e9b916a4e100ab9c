"""A section of HER2+ that a pathologist has labelled."""

import json

from m2ost_bench.domains import to_markdown
from m2ost_domains.expression import read_expression
from m2ost_domains.labels import read_labels
from m2ost_domains.methods import METHODS, DomainOptions
from m2ost_domains.run import run

from tests.support.data import REPOSITORY, shared_file

RECORD = REPOSITORY / "benchmarks" / "domains-her2.json"


def test_a_labelled_section_gives_what_was_recorded(tmp_path):
    expression = read_expression(
        shared_file("her2st_counts/counts/A1.tsv.gz"), spots=shared_file("her2st_counts/spots/A1_selection.tsv")
    )
    labels = shared_file("her2st_counts/labels/A1_labeled_coordinates.tsv")
    kept = json.loads(RECORD.read_text())["sections"]["A1"]
    assert kept["k"] == len(set(read_labels(labels).values()))
    for method in METHODS:
        done = run(expression, DomainOptions(k=kept["k"], method=method), tmp_path, labels=labels)
        assert done.record["agreement"]["spots"] == kept["labelled"]
        # Another processor may round otherwise and group a few spots otherwise.
        assert abs(done.record["agreement"]["ari"] - kept["methods"][method]["ari"]) < 0.1
        assert done.record["agreement"]["ari"] > 0


def test_the_record_in_words():
    report = json.loads(RECORD.read_text())
    assert len(report["sections"]) == 8
    assert "| mean | | | **" in to_markdown(report)
