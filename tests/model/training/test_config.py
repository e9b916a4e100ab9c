"""Settings: read, overridden, refused by name."""

import pytest
from m2ost.training.config import ConfigError, config_from, read_config

YAML = """
data: {root: here, panel: panel.txt}
split: {train: [A], validation: [B]}
optim: {learning_rate: 4e-4}
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return path


def test_a_value_of_the_file_and_the_rest_by_default(path):
    config = read_config(path)
    assert config.optim.learning_rate == 4e-4
    assert config.split.train == ("A",)
    assert config.model.depth == 4


def test_every_field_can_be_overridden(path):
    config = read_config(path, ["optim.epochs=3", "model.depth=2", "split.train=[C, D]", "seed=5", "data.layout=her2"])
    assert (config.optim.epochs, config.model.depth, config.seed) == (3, 2, 5)
    assert config.split.train == ("C", "D")
    assert config.data.layout == "her2"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.epoch=3", r"unknown field optim.epoch; the nearest known one is optim.epochs"),
        ("modle.depth=3", r"unknown field modle; the nearest known one is model"),
        ("optim.epochs=three", r"optim.epochs cannot be 'three'"),
        ("optim.epochs=0", r"optim.epochs must be positive"),
        ("optim.precision=fp8", r"bf16 or fp32"),
        ("model.mask_ratio=1.5", r"mask_ratio must lie in \[0, 1\)"),
        ("split.validation=[A]", r"section A stands twice"),
        ("split.train=[]", r"split.train names no section"),
        ("data.target=counts", r"data.target must be"),
        ("optim.epochs", r"must read field=value"),
        ("seed.a=1", r"seed is a value|seed cannot be"),
    ],
)
def test_a_bad_field_is_named(path, override, message):
    with pytest.raises(ConfigError, match=message):
        read_config(path, [override])


def test_a_missing_field_is_named():
    with pytest.raises(ConfigError, match="panel"):
        config_from({"data": {"root": "x"}, "split": {"train": ["A"], "validation": ["B"]}}, "run.yaml")


@pytest.mark.parametrize("text", ["just words", "a: [", "- 1"])
def test_a_file_that_is_no_configuration(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        read_config(path)


def test_settings_survive_their_yaml_form(path):
    config = read_config(path, ["model.n_genes=7"])
    assert config_from(config.to_dict(), "again") == config
