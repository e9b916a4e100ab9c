"""Recipes: settings of a run that lie ready, the published one of each system and one for all."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..systems.registry import M2OST_NAME, find
from .config import ConfigError, config_from

FOLDER = Path(__file__).parent.parent / "recipes"

COMMON = "common"
"""The recipe of all systems; every other that ships bears its system's name."""

_FILLED = {"root": "-", "panel": "-"}
_SPLIT = {"train": ["a"], "validation": ["b"]}


def recipe_names() -> tuple[str, ...]:
    """Of those that ship."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def read_recipe(recipe: str, system: str | None = None) -> dict[str, Any]:
    """Settings of a recipe, as ``config_from`` takes them, without data and split.

    Parameters
    ----------
    recipe : str
        Name of one that ships, or a YAML file. It holds any fields of a run's settings but the split; what it holds
        under ``systems.NAME`` goes before the rest for the system of that name.
    system : str, optional
        Which system is trained; by default the recipe's own, else M2OST.

    Raises
    ------
    ConfigError
        If there is no such recipe (names the nearest), it is of another system, or a field is unknown or cannot be.
    UnknownSystem
        If there is no system of a name.
    """
    path = FOLDER / f"{recipe}.yaml" if recipe in recipe_names() else Path(recipe)
    if not path.is_file():
        near = difflib.get_close_matches(recipe, recipe_names(), 1, cutoff=0.0)[0]
        raise ConfigError(
            f"recipe {recipe}: no such file, and none that ships; the nearest is {near}, of {', '.join(recipe_names())}"
        )
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot read the recipe: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("systems", {}), dict) or "split" in raw:
        raise ConfigError(f"{path}: a recipe is a mapping of a run's settings without a split, and `systems`")
    by_system = raw.pop("systems", {})
    for name in by_system:
        find(name)
    model = raw.get("model")
    own = model.get("name") if isinstance(model, Mapping) else None
    chosen = system or own or M2OST_NAME
    if own not in (None, chosen):
        raise ConfigError(f"{path}: a recipe of {own}; {chosen} takes {COMMON}, or its own")
    settings = over(over(raw, by_system.get(chosen) or {}), {"model": {"name": chosen}})
    config_from(over({"data": _FILLED, "split": _SPLIT}, settings), str(path))
    return settings


def over(base: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the fields of ``above`` in their place, section by section."""
    merged = dict(base)
    for name, value in above.items():
        below = merged.get(name)
        merged[name] = over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def with_recipe(raw: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """A run's settings over those of a recipe; see :func:`read_recipe`."""
    model = raw.get("model")
    return over(read_recipe(recipe, model.get("name") if isinstance(model, Mapping) else None), raw)
