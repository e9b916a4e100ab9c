"""Under which names the models of a release are served."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .errors import M2OSTError
from .tensors import MODEL_ENGINE, MODEL_GUARD, MODEL_TILER

NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
"""What a release may be called: it becomes part of folders, metrics and names of models."""

SERVED_PARAMETER = "served"
"""Parameter of the config of ``slide_info``: JSON object, name of a release → name of its engine on this server."""


class ServedNameError(M2OSTError):
    """A name that no release can have, or that two of one server have, or that a server does not serve."""


@dataclass(frozen=True)
class ModelNames:
    """Names of the served models of one release.

    Parameters
    ----------
    engine : str
        The engine; the names of the ensembles begin with it.
    tiler : str
        Cuts its views; releases with the same views share it.
    guard : str
        Has rows without views come out without values.
    """

    engine: str = MODEL_ENGINE
    tiler: str = MODEL_TILER
    guard: str = MODEL_GUARD

    @property
    def slide(self) -> str:
        """Scores spots of a slide, or a slide as a whole."""
        return f"{self.engine}_slide"

    @property
    def patches(self) -> str:
        """Scores views."""
        return f"{self.engine}_patches"

    @property
    def spots(self) -> str:
        """The first stage of a slide-level release, on spots of a slide."""
        return f"{self.engine}_spots"

    @property
    def sequence(self) -> str:
        """The second stage of a slide-level release."""
        return f"{self.engine}_sequence"

    @classmethod
    def from_dict(cls, raw: Mapping[str, str]) -> ModelNames:
        """Inverse of :func:`dataclasses.asdict`.

        Raises
        ------
        ValueError
            If a name is missing, unknown, or no text.
        """
        if set(raw) != set(cls.__dataclass_fields__) or not all(isinstance(v, str) and v for v in raw.values()):
            raise ValueError(f"names of models are those of {', '.join(cls.__dataclass_fields__)}, not {raw!r}")
        return cls(**raw)

    def of(self, template: str) -> str:
        """What a model is served as, by its name in a release that is served alone."""
        alone = ModelNames()
        return next((getattr(self, kind) for kind in _KINDS if getattr(alone, kind) == template), template)


_KINDS = ("engine", "tiler", "guard", "slide", "patches", "spots", "sequence")


def check_name(name: str) -> str:
    """A release's name, if it can be one.

    Raises
    ------
    ServedNameError
        If it cannot.
    """
    if not NAME.fullmatch(name):
        raise ServedNameError(
            f"a release cannot be called {name!r}; a name has a to z, 0 to 9 and _, at most 41 of them, a letter first"
        )
    return name


def choose(served: Mapping[str, str], name: str | None) -> str:
    """The engine that a client means.

    Parameters
    ----------
    served : mapping of str to str
        Names of the releases that a server serves → names of their engines.
    name : str or None
        The release that is asked for; None for the only one.

    Raises
    ------
    ServedNameError
        If there is none of that name, or several and none is named; names those that there are.
    """
    there = ", ".join(served)
    if name is None and len(served) > 1:
        raise ServedNameError(f"it serves {there}: say which with --model")
    if name is None:
        return next(iter(served.values()))
    if name not in served:
        raise ServedNameError(f"it serves no model {name!r}; there is {there}")
    return served[name]


def check_distinct(names: Iterable[str]) -> None:
    """Whether the models of releases with these names can be told from each other on one server.

    Raises
    ------
    ServedNameError
        If two are called the same, or a model of one would be called as one of another or of the server's own.
    """
    taken: dict[str, str] = {}
    for name in names:
        own = ModelNames(check_name(name), guard=f"{name}_guard")
        for model in {getattr(own, kind) for kind in _KINDS if kind != "tiler"}:
            if model in taken:
                both = f"two releases are called {name}" if taken[model] == name else f"{taken[model]} and {name} clash"
                raise ServedNameError(f"{both}: both would have a model {model}; m2ost export --name NAME names one")
            if model == "slide_info" or model.startswith(MODEL_TILER):
                raise ServedNameError(f"a release called {name} would have a model {model}, as every server has one")
            taken[model] = name
