"""Recipes: what ships can be trained, what a run says goes before them, and what is unknown is named."""

import pytest
from m2ost.systems.registry import SYSTEMS, UnknownSystem
from m2ost.training.config import ConfigError, config_from
from m2ost.training.recipes import COMMON, read_recipe, recipe_names, with_recipe

RUN = {"data": {"root": "here", "panel": "panel.txt"}, "split": {"train": ["A"], "validation": ["B"]}}


def test_every_system_has_its_published_recipe_and_there_is_one_for_all():
    assert set(recipe_names()) == {COMMON, *SYSTEMS}


@pytest.mark.parametrize("name", SYSTEMS)
def test_recipes_that_ship_are_settings_of_a_run(name):
    published = config_from(with_recipe(RUN, name), name)
    common = config_from(with_recipe({**RUN, "model": {"name": name}}, COMMON), name)
    assert type(published.model) is type(common.model) is SYSTEMS[name].config
    assert common.optim.optimizer == "adamw"
    assert published.augment.stain == 0, "none of them varied stains"


def test_published_schedules():
    stnet, hist2st = (config_from(with_recipe(RUN, name), name).optim for name in ("stnet", "hist2st"))
    assert (stnet.optimizer, stnet.momentum, stnet.epochs, stnet.batch_size) == ("sgd", 0.9, 50, 32)
    assert (hist2st.schedule, hist2st.step_epochs, hist2st.step_factor, hist2st.epochs) == ("steps", 50, 0.9, 350)


def test_a_run_goes_before_its_recipe_and_a_system_before_the_rest(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optim: {epochs: 7, batch_size: 5}\nsystems: {vit: {optim: {epochs: 9}}}\n")
    for raw, expected in (
        (RUN, (7, 5)),
        ({**RUN, "model": {"name": "vit"}}, (9, 5)),
        ({**RUN, "model": {"name": "vit"}, "optim": {"epochs": 2}}, (2, 5)),
    ):
        optim = config_from(with_recipe(raw, str(recipe)), "run").optim
        assert (optim.epochs, optim.batch_size) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {epoch: 3}", r"mine.yaml: unknown field optim.epoch; the nearest known one is optim.epochs"),
        ("systems: {vitt: {}}", "unknown architecture 'vitt'; the nearest known one is vit"),
        ("split: {train: [A], validation: [B]}", "a recipe is a mapping of a run's settings without a split"),
        ("model: {name: vit}", "mine.yaml: a recipe of vit; stnet takes common, or its own"),
        ("- 1", "a recipe is a mapping"),
        ("a: [", "cannot read the recipe"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_name(text, words, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises((ConfigError, UnknownSystem), match=words):
        read_recipe(str(path), "stnet")


def test_an_unknown_recipe_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"recipe comon: no such file.*the nearest is common, of bleep, common"):
        read_recipe("comon")
