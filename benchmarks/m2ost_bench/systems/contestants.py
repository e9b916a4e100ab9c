"""Who is compared: systems, each with its settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2ost.config import MODULES
from m2ost.systems.registry import M2OST_NAME, SYSTEMS, find

PUBLISHED = "published"
"""In place of a recipe: of each system its own."""

BY_COST = ("histogene", "hist2st", "m2ost", "stnet", "resnet50", "bleep", "crossvit", "deepspace", "vit")
"""Systems, those first whose training costs least."""


@dataclass(frozen=True)
class Contestant:
    """A row of the table.

    Parameters
    ----------
    name : str
        Of its folder.
    system : str
        A name of the registry.
    model : mapping
        Sizes, where they are others than its recipe's.
    pretrained : Path, optional
        File of pretrained weights.
    checkpoint : Path, optional
        A checkpoint that is taken as it is, and not trained.
    """

    name: str
    system: str
    model: Mapping[str, Any] = field(default_factory=dict)
    pretrained: Path | None = None
    checkpoint: Path | None = None

    def recipe(self, recipe: str) -> str:
        """Name or file of its recipe."""
        return self.system if recipe == PUBLISHED else recipe


_LEVELS: dict[str, dict[str, Any]] = {
    "levels-0": {"n_levels": 1},
    "levels-1": {"n_levels": 2, "levels": [1]},
    "levels-2": {"levels": [2]},
    "levels-0+1": {"n_levels": 2},
    "levels-0+2": {"levels": [0, 2]},
    "levels-1+2": {"levels": [1, 2]},
}
_WITHOUT = (*(MODULES[:n] for n in range(1, len(MODULES) + 1)), *((name,) for name in MODULES[1:]))


def ablations() -> list[Contestant]:
    """M2OST, then some of its levels, then without modules: as the article takes them away in turn, and one by one."""
    changes: dict[str, dict[str, Any]] = {
        **_LEVELS,
        **{f"without-{'-'.join(names)}": {"without": list(names)} for names in _WITHOUT},
    }
    whole = Contestant(M2OST_NAME, M2OST_NAME)
    return [whole, *(Contestant(f"{M2OST_NAME}-{name}", M2OST_NAME, sizes) for name, sizes in changes.items())]


def all_systems(names: Sequence[str] = (), pretrained: Mapping[str, Path] | None = None) -> list[Contestant]:
    """The systems of some names, by default all, those first whose training costs least.

    Raises
    ------
    UnknownSystem
        If there is no system of a name.
    """
    files = pretrained or {}
    for name in (*names, *files):
        find(name)
    order = [*BY_COST, *(name for name in SYSTEMS if name not in BY_COST)]
    return [Contestant(name, name, pretrained=files.get(name)) for name in order if name in (names or SYSTEMS)]
