"""Splits, panels and runs from the command line."""

import pytest
import yaml
from m2ost.checkpoint import load

from tests.model.sections import GENES, write_section
from tests.support.command import error_of, m2ost


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("A1", "B1", "C1", "C2")):
        write_section(root, name, seed)
    return root


@pytest.mark.usefixtures("heavy")
def test_from_data_to_a_checkpoint(root, tmp_path):
    status, _, errors = m2ost("split", "--data", root, "--out", tmp_path / "split.yaml", "--shares", "1,1,1")
    assert status == 0, errors
    split = yaml.safe_load((tmp_path / "split.yaml").read_text())
    assert sorted(name for part in split.values() for name in part) == ["A1", "B1", "C1", "C2"]
    assert any({"C1", "C2"} <= set(part) for part in split.values())
    status, _, errors = m2ost(
        "panel", "--data", root, "--split", tmp_path / "split.yaml", "--size", 3, "--out", tmp_path / "panel.txt"
    )
    assert status == 0, errors
    genes = (tmp_path / "panel.txt").read_text().split()
    assert len(genes) == 3
    assert set(genes) < set(GENES)
    small = {"image_px": 32, "depth": 1, "dim": 12, "heads": 1, "head_dim": 12, "ffn_dim": 8, "channel_dim": 8}
    config = {
        "data": {"root": str(root), "panel": str(tmp_path / "panel.txt"), "cache": str(tmp_path / "views")},
        "split": {"train": ["X"], "validation": ["Y"]},
        "model": small,
        "optim": {"epochs": 1, "batch_size": 8},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    run = ("train", tmp_path / "run.yaml", "--out", tmp_path / "run")
    status, output, errors = m2ost(*run, "--split", tmp_path / "split.yaml", "--set", "optim.epochs=2")
    assert status == 0, errors
    assert "m2ost evaluate" in output
    _, card = load(tmp_path / "run" / "checkpoint")
    assert card.genes == tuple(genes)
    assert card.provenance["training"]["split"] == split
    assert card.provenance["training"]["config"]["optim"]["epochs"] == 2


def test_leave_one_out_writes_a_split_a_patient(root, tmp_path):
    status, _, errors = m2ost("split", "--data", root, "--out", tmp_path / "splits", "--leave-one-out")
    assert status == 0, errors
    tests = [yaml.safe_load(path.read_text())["test"] for path in sorted((tmp_path / "splits").iterdir())]
    assert tests == [["A1"], ["B1"], ["C1", "C2"]]


def test_what_is_wrong_is_said(root, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("data: {root: nowhere, panel: p.txt}\nsplit: {train: [A1], validation: [B1]}\n")
    for arguments, words in (
        (("split", "--data", tmp_path / "no", "--out", tmp_path / "s"), "no such folder"),
        (("split", "--data", root, "--out", tmp_path / "s", "--shares", "1,-2,3"), "three numbers above 0"),
        (("panel", "--data", root, "--split", config, "--out", tmp_path / "p"), "no split"),
        (("train", config, "--out", tmp_path / "run", "--set", "optim.epoch=1"), "nearest known one is optim.epochs"),
        (("train", config, "--out", tmp_path / "run", "--recipe", "comon"), "the nearest is common"),
        (("train", config, "--out", tmp_path / "run"), "p.txt: cannot read the gene panel"),
        (("evaluate", tmp_path / "none", "--data", root, "--out", tmp_path / "e"), "not a checkpoint or release"),
    ):
        assert words in error_of(*arguments)
