"""Domains that are known are found, written whole, and what cannot be is refused in words."""

import json
import subprocess
import sys

import anndata
import numpy as np
import pytest
from m2ost_domains.errors import DomainsError
from m2ost_domains.expression import log_normalised, read_expression
from m2ost_domains.labels import agreement, read_labels
from m2ost_domains.methods import METHODS, DomainOptions, find_domains
from m2ost_domains.run import run
from PIL import Image
from scipy import sparse
from typer.testing import CliRunner

from tests.support.command import error_of

from .sections import bands, counts_of, write_counts_h5ad, write_labels, write_result_h5ad

TRUTH, NAMES, CENTERS = bands()


@pytest.fixture
def counts_file(tmp_path):
    return write_counts_h5ad(tmp_path / "made.h5ad", counts_of(TRUTH), NAMES, CENTERS)


@pytest.mark.parametrize("method", METHODS)
def test_known_domains_are_found_and_the_same_again(counts_file, method):
    expression = read_expression(counts_file)
    options = DomainOptions(k=3, method=method)
    found = find_domains(expression.values, expression.centers, options)
    assert agreement(NAMES, found, dict(zip(NAMES, map(str, TRUTH), strict=True))).ari == 1
    assert (find_domains(expression.values, expression.centers, options) == found).all()


def test_domains_are_numbered_by_size():
    truth = np.repeat([2, 0, 1], [10, 30, 20])
    values = log_normalised(sparse.csr_matrix(counts_of(truth)))
    found = find_domains(values, np.zeros((60, 2)), DomainOptions(k=3, method="kmeans"))
    assert found.tolist() == [3] * 10 + [1] * 30 + [2] * 20


def test_counts_are_scaled_and_the_most_variable_genes_kept():
    counts = np.random.default_rng(0).poisson(2.0, (30, 3100)).astype(float)
    counts[:, :100] = counts.sum(axis=1, keepdims=True) * 10  # hardly varies
    logs = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    kept = np.sort(np.argsort(-logs.var(axis=0))[:3000])
    np.testing.assert_allclose(log_normalised(sparse.csr_matrix(counts)), logs[:, kept], rtol=1e-9)


def test_a_result_is_taken_as_it_is_and_written_with_its_domains(tmp_path):
    values = np.log1p(counts_of(TRUTH) * 100.0)
    values[[5, 17]] = np.nan
    path = write_result_h5ad(tmp_path / "made.h5ad", values, NAMES, CENTERS)
    before = path.read_bytes()
    labels = write_labels(tmp_path / "labels.tsv", TRUTH, NAMES)
    done = command(path, "--k", "3", "--out", tmp_path / "out", "--labels", labels)
    assert done.exit_code == 3
    assert "ARI 1.000 with 3 labels of 142 spots" in done.output
    assert "2 spots left out: without a value" in done.output
    assert path.read_bytes() == before
    table = anndata.read_h5ad(tmp_path / "out" / "made.domains.h5ad")
    assert table.obs["domain"].isna().to_numpy().nonzero()[0].tolist() == [5, 17]
    assert sorted(table.obs["domain"].cat.categories) == ["1", "2", "3"]
    np.testing.assert_array_equal(table.X, values.astype(np.float32))
    record = json.loads((tmp_path / "out" / "made.domains.json").read_text())
    assert (record["method"], record["k"], record["left_out"]) == ("gmm", 3, {"without a value": 2})
    assert sum(record["sizes"]) == 142
    drawn = np.asarray(Image.open(tmp_path / "out" / "made.domains.png").convert("RGB")).reshape(-1, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73)):
        assert (drawn == colour).all(axis=1).sum() > 1000


def command(*arguments):
    from m2ost_cli.main import app

    return CliRunner().invoke(app, ["domains", *map(str, arguments)])


def test_domains_of_a_result_are_compared_with_those_of_counts(tmp_path, counts_file):
    run(read_expression(counts_file), DomainOptions(k=3), tmp_path / "measured")
    predicted = write_result_h5ad(tmp_path / "predicted.h5ad", np.log1p(counts_of(TRUTH, seed=1)), NAMES, CENTERS)
    measured = tmp_path / "measured" / "made.domains.h5ad"
    done = run(read_expression(predicted), DomainOptions(k=3), tmp_path / "out", labels=measured)
    assert (done.record["agreement"]["ari"], done.record["agreement"]["spots"]) == (1, len(NAMES))


def test_a_table_of_counts_takes_positions_of_its_own(tmp_path):
    counts = counts_of(TRUTH)
    counts[3] = 0
    lines = ["\t" + "\t".join(f"G{i}" for i in range(60))]
    lines += ["\t".join([name, *map(str, row)]) for name, row in zip(NAMES, counts, strict=True)][:-1]
    (tmp_path / "made.tsv").write_text("\n".join(lines) + "\n")
    rows = [f"{n.replace('x', chr(9))}\t{a}\t{b}" for n, (a, b) in zip(NAMES, CENTERS, strict=True)]
    (tmp_path / "spots.tsv").write_text("\n".join(["x\ty\tpixel_x\tpixel_y", *rows]) + "\n")
    expression = read_expression(tmp_path / "made.tsv", spots=tmp_path / "spots.tsv")
    assert expression.name == "made"
    assert expression.left_out == {"without a count": 1, "without counts": 1}
    assert expression.spot_names == tuple(NAMES[:3] + NAMES[4:-1])
    np.testing.assert_array_equal(expression.table.obsm["spatial"], CENTERS[:-1])
    assert "give their file with --spots" in error_of("domains", tmp_path / "made.tsv", "--k", 3, "--out", tmp_path)


def test_places_on_the_array_are_rounded_and_undetermined_is_no_label(tmp_path):
    (tmp_path / "labels.tsv").write_text(
        "Row.names\tx\ty\tlabel\na\t9.02\t20.994\tcancer\nb\t3.9\t5.1\tundetermined\nc\t\t\tfat\n"
    )
    assert read_labels(tmp_path / "labels.tsv") == {"9x21": "cancer"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("spot\tlabel\na\tx\na\ty\n", "spot a has several labels"),
        ("spot\tlabel\na\tundetermined\n", "labels no spot"),
        ("spot\tkind\na\tx\n", "has no column"),
        ("x\tlabel\n1\tx\n", "has no column"),
        ("", "cannot read the labels"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(tmp_path, content, words):
    (tmp_path / "labels.tsv").write_text(content)
    with pytest.raises(DomainsError, match=words):
        read_labels(tmp_path / "labels.tsv")


def test_labels_of_other_spots_are_refused_and_nothing_is_written(tmp_path, counts_file):
    labels = write_labels(tmp_path / "labels.tsv", TRUTH, [f"spot_{name}" for name in NAMES])
    words = error_of("domains", counts_file, "--k", 3, "--out", tmp_path / "out", "--labels", labels)
    assert "0 of the 144 labelled spots (spot_0x0, spot_1x0, spot_2x0 …) have a domain (spots: 0x0, 1x0" in words
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--k", 145), "145 domains of 144 spots"),
        (("--k", 3, "--method", "mclust"), "unknown method 'mclust'; there are gmm, kmeans, leiden, staig, mcgae"),
        (("--k", 3, "--spots", "a.tsv"), "has positions of its own"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(tmp_path, counts_file, options, words):
    assert words in error_of("domains", counts_file, *options, "--out", tmp_path / "out")


def test_a_file_without_expression_is_refused(tmp_path):
    place, out = np.zeros((3, 2)), ("--k", 2, "--out", tmp_path)
    empty = write_result_h5ad(tmp_path / "empty.h5ad", np.zeros((3, 0)), list("abc"), place)
    assert "holds no expression (3 spots × 0 genes)" in error_of("domains", empty, *out)
    nothing = write_result_h5ad(tmp_path / "nan.h5ad", np.full((3, 4), np.nan), list("abc"), place)
    assert "2 domains of 0 spots" in error_of("domains", nothing, *out)
    alike = write_result_h5ad(tmp_path / "alike.h5ad", np.ones((3, 4)), list("abc"), place)
    assert "all spots have the same expression" in error_of("domains", alike, *out)
    logs = write_counts_h5ad(tmp_path / "logs.h5ad", np.full((3, 4), 0.5), list("abc"), place)
    assert "holds whole numbers" in error_of("domains", logs, *out)
    (tmp_path / "text.h5ad").write_text("no table")
    assert "neither a table of counts" in error_of("domains", tmp_path / "text.h5ad", *out)
    assert "no such file" in error_of("domains", tmp_path / "absent.h5ad", *out)


def test_a_run_that_fails_leaves_the_earlier_files(tmp_path, counts_file, monkeypatch):
    done = run(read_expression(counts_file), DomainOptions(k=3), tmp_path / "out")
    before = [file.read_bytes() for file in done.files]
    monkeypatch.setattr("m2ost_domains.output.draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(read_expression(counts_file), DomainOptions(k=2), tmp_path / "out")
    assert [file.read_bytes() for file in done.files] == before
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_torch_is_not_imported():
    # In a process of its own; scikit-learn asks sys.modules for torch, so that None there will not do.
    script = "import sys, m2ost_domains.run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
