"""Runs: they learn, resume to the same weights, and say what they were."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from m2ost.checkpoint import load
from m2ost.config import M2OSTConfig
from m2ost.network import M2OST
from m2ost.training.config import ConfigError, OptimConfig, config_from
from m2ost.training.loop import STATE, TrainingError, initialise
from m2ost.training.run import train
from m2ost.training.spots import project
from m2ost.weights import CheckpointError
from safetensors import safe_open

from tests.support.data import shared_file
from tests.support.machine import kept_ports


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load(checkpoint)[0].state_dict()


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights_of(a), weights_of(b)
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.fixture(scope="module")
def finished(tiny_raw, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(config_from(tiny_raw, "tiny"), folder)
    return folder


def test_without_validation_the_last_epoch_is_kept_and_another_does_not_choose(tiny_raw, tmp_path):
    split = {"train": ["A1", "A2", "B1"], "validation": [], "test": ["B2"]}
    raw = {**tiny_raw, "split": split, "optim": {**tiny_raw["optim"], "epochs": 3, "patience": 1}}
    told = []
    checkpoint = train(config_from(raw, "tiny"), tmp_path / "run", report=told.append)
    card = load(checkpoint)[1]
    training = card.provenance["training"]
    assert (training["best_epoch"], training["validation_r_gene_mean"]) == (3, None)
    assert training["spots"] == {"A1": 16, "A2": 16, "B1": 16}
    assert all("validation_loss" not in row for row in told)


def test_a_split_without_the_word_validation_is_refused(tiny_raw):
    with pytest.raises(ConfigError, match="validation"):
        config_from({**tiny_raw, "split": {"train": ["A1", "A2"]}}, "tiny")


def test_a_run_leaves_its_checkpoint_log_settings_and_split(finished):
    _, card = load(finished / "checkpoint")
    assert card.trained
    assert card.genes == ("RED", "BLUE", "BOTH", "HOUSE")
    assert card.provenance["training"]["split"] == {"train": ["A1", "A2"], "validation": ["B1"], "test": ["B2"]}
    assert card.provenance["training"]["spots"] == {"A1": 16, "A2": 16, "B1": 16}
    with (finished / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    best = max(rows, key=lambda row: float(row["validation_r_gene_mean"]))
    assert card.provenance["training"]["best_epoch"] == int(best["epoch"])
    assert (finished / "split.yaml").is_file()
    assert config_from(json.loads(json.dumps(card.provenance["training"]["config"])), "card").seed == 0


def test_one_seed_one_result(finished, tiny_config, tmp_path):
    assert_same_weights(train(tiny_config, tmp_path), finished / "checkpoint")
    other = train(replace(tiny_config, seed=1), tmp_path / "other")
    assert not torch.equal(weights_of(other)["head.weight"], weights_of(finished / "checkpoint")["head.weight"])


@pytest.mark.parametrize(("state_every_s", "goes_on_from"), [(0, 2), (1000, 1)])
def test_a_run_killed_after_an_epoch_ends_as_if_it_had_not_been(
    finished, tiny_config, tmp_path, state_every_s, goes_on_from
):
    class Killed(BaseException):
        pass

    def die(row):
        if row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(tiny_config, tmp_path, report=die, state_every_s=state_every_s)
    with safe_open(tmp_path / STATE, "pt") as state:
        assert json.loads(state.metadata()["progress"])["epoch"] == goes_on_from
    assert not (tmp_path / "checkpoint").exists()
    assert_same_weights(train(tiny_config, tmp_path), finished / "checkpoint")
    columns = ("epoch", "train_loss", "validation_loss")
    logs = []
    for folder in (tmp_path, finished):
        with (folder / "log.csv").open() as file:
            logs.append([[row[c] for c in columns] for row in csv.DictReader(file)])
    assert logs[0] == logs[1]


def test_a_finished_run_is_not_overwritten(finished, tiny_config):
    with pytest.raises(CheckpointError, match="finished"):
        train(tiny_config, finished)


def test_a_run_does_not_go_on_with_other_settings(tiny_config, tmp_path):
    train(replace(tiny_config, optim=replace(tiny_config.optim, epochs=1)), tmp_path)
    (tmp_path / "checkpoint").rename(tmp_path / "away")
    settings = (tmp_path / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match="other settings"):
        train(tiny_config, tmp_path)
    assert (tmp_path / "config.yaml").read_text() == settings
    (tmp_path / STATE).write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="remove the file"):
        train(tiny_config, tmp_path)


def test_a_run_that_diverges_says_so_and_leaves_no_checkpoint(tiny_config, tmp_path):
    wild = replace(tiny_config.optim, learning_rate=1e30, warmup_epochs=0.0)
    with pytest.raises(TrainingError, match=r"epoch \d: the loss is (nan|inf); try a lower"):
        train(replace(tiny_config, optim=wild), tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_a_run_ends_when_nothing_gets_better(tiny_config, tmp_path):
    stuck = replace(tiny_config.optim, epochs=50, patience=2, learning_rate=1e-12, ema=0.0)
    checkpoint = train(replace(tiny_config, optim=stuck), tmp_path)
    with (tmp_path / "log.csv").open() as file:
        epochs = len(list(csv.DictReader(file)))
    assert epochs == load(checkpoint)[1].provenance["training"]["best_epoch"] + 2 < 50


def test_two_processes_train_one_network(tiny_raw, tmp_path):
    # Equal shares of every batch: the mean of two gradients is the gradient of the whole. Nothing random but the order.
    plain = {
        **tiny_raw,
        "model": {**tiny_raw["model"], "mask_ratio": 0.0, "token_drop": 0.0},
        "augment": {"dihedral": False, "stain": 0.0, "brightness": 0.0},
    }
    config = tmp_path / "run.json"
    config.write_text(json.dumps(plain))
    script = (
        "import sys, json; from pathlib import Path; from m2ost.training.config import config_from;"
        "from m2ost.training.run import train;"
        "train(config_from(json.loads(Path(sys.argv[1]).read_text()), 'run'), Path(sys.argv[2]), device='cpu')"
    )
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    train(config_from(plain, "run"), alone, device="cpu")
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    with kept_ports(1) as (port,):
        common["MASTER_PORT"] = str(port)
        team = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(config), str(pair)], env={**common, "RANK": rank, "LOCAL_RANK": rank}
            )
            for rank in ("0", "1")
        ]
        assert [process.wait(timeout=120) for process in team] == [0, 0]
    first, second = weights_of(alone / "checkpoint"), weights_of(pair / "checkpoint")
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=2e-4, rtol=1e-3)


def test_the_head_starts_at_the_training_mean_and_the_tables_at_their_scale():
    model = M2OST(M2OSTConfig(n_genes=3, image_px=32, depth=1, dim=12, heads=1, head_dim=12, ffn_dim=8, channel_dim=8))
    before = model.embed.positions[1].std()
    targets = np.array([[1.0, 2, 3], [3, 4, 5]], np.float32)
    initialise(model, targets, OptimConfig(head_scale=0.0, position_std=0.1))
    torch.testing.assert_close(model.embed.positions[1].std(), before * 5)
    views = [torch.rand(2, 32, 32, 3) for _ in range(3)]
    torch.testing.assert_close(model.eval()(*views), torch.tensor([[2.0, 3, 4], [2, 3, 4]]))


def test_a_projection_keeps_the_leading_components_and_the_mean():
    rng = np.random.default_rng(0)
    targets = (rng.normal(size=(30, 2)) @ rng.normal(size=(2, 7)) + 5).astype(np.float32)
    np.testing.assert_allclose(project(targets, 2), targets, atol=1e-5)
    one = project(targets, 1)
    assert np.linalg.matrix_rank(one - one.mean(axis=0), tol=1e-3) == 1
    np.testing.assert_allclose(one.mean(axis=0), targets.mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(project(targets, 0), targets)


def test_dropped_tokens_and_masks_are_for_training_only():
    config = M2OSTConfig(
        n_genes=3, image_px=32, depth=1, dim=12, heads=1, head_dim=12, ffn_dim=8, channel_dim=8, token_drop=0.5
    )
    model, views = M2OST(config), [torch.rand(2, 32, 32, 3) for _ in range(3)]
    whole = [1 + (i + 1) * 4 for i in range(3)]
    assert [s.shape[1] for s in model.eval().embed(views)] == whole
    sequences = model.train().embed(views)
    assert [s.shape[1] for s in sequences] == [3, 5, 7]
    cls = model.embed.cls_token[0, 0] + model.embed.positions[0][0, 0]
    torch.testing.assert_close(sequences[0][:, 0], cls.expand(2, -1))


@pytest.mark.usefixtures("heavy")
def test_a_short_training_on_real_spots_beats_what_sees_no_image(tmp_path):
    # A section, a narrow network, half a minute: r per gene of any constant is 0.
    root = shared_file("her2st")
    raw = {
        "data": {
            "root": str(root),
            "panel": str(shared_file("gene_panels/her2.txt")),
            "cache": str(tmp_path / "views"),
        },
        "split": {"train": ["C2"], "validation": ["C5"]},
        "model": {"depth": 1, "dim": 48, "heads": 1, "head_dim": 48, "ffn_dim": 48, "channel_dim": 48, "image_px": 64},
        "optim": {"epochs": 5, "batch_size": 24, "learning_rate": 1e-3, "target_rank": 5, "ema": 0.9},
    }
    train(config_from(raw, "short"), tmp_path / "run")
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]
    assert max(row["validation_r_gene_mean"] for row in rows) > 0.05
