"""Every system by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from m2ost_contract import M2OSTError
from torch import Tensor

from ..architecture import Architecture
from ..authors import own_names, translate
from ..config import M2OSTConfig
from ..module import Network
from ..network import M2OST
from .bleep import BLEEP
from .crossvit import CROSSVIT
from .deepspace import DEEPSPACE
from .hist2st import HIST2ST
from .histogene import HISTOGENE
from .resnet50 import RESNET50
from .stnet import STNET
from .system import FUSED, System
from .vit import VIT

M2OST_NAME = "m2ost"

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(
            name=M2OST_NAME,
            title="M2OST (Wang 2025)",
            config=M2OSTConfig,
            network=M2OST,
            form=FUSED,
            translate=translate,
            pretrained_names=own_names,
            signature=r"transformer\.layers\.\d+\.0\.to_qkv1\.",
            heads=("head",),
            tables=("embed.cls_token", "embed.positions"),
            fresh=("head.",),
        ),
        STNET,
        RESNET50,
        VIT,
        CROSSVIT,
        DEEPSPACE,
        BLEEP,
        HISTOGENE,
        HIST2ST,
    )
}


class UnknownSystem(M2OSTError, ValueError):
    """There is no system of that name; the message names the nearest, and all."""


def find(name: str) -> System:
    """The system of a name.

    Raises
    ------
    UnknownSystem
        If there is none.
    """
    if name not in SYSTEMS:
        near = difflib.get_close_matches(str(name).lower().replace("-", ""), SYSTEMS, 1, cutoff=0.0)[0]
        raise UnknownSystem(f"unknown architecture {name!r}; the nearest known one is {near}, of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def system_of(config: Architecture) -> System:
    """The system that an architecture is of."""
    return next(system for system in SYSTEMS.values() if system.config is type(config))


def build(config: Architecture) -> Network:
    """A network of these sizes, freshly initialised."""
    return system_of(config).network(config)


def to_dict(config: Architecture) -> dict[str, Any]:
    """JSON form of an architecture: the system's name, then its sizes; an M2OST has no name, as all were one once."""
    name = system_of(config).name
    return {**({} if name == M2OST_NAME else {"name": name}), **config.to_dict()}


def from_dict(raw: Mapping[str, Any]) -> Architecture:
    """Inverse of :func:`to_dict`; what has no name is an M2OST.

    Raises
    ------
    UnknownSystem
        If there is no system of that name.
    ValueError
        If a field is unknown, or a value cannot be.
    """
    sizes = dict(raw)
    return find(sizes.pop("name", M2OST_NAME)).config.from_dict(sizes)


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The name of the system whose weights these are, by their public names; None where they are of none."""
    for system in SYSTEMS.values():
        if any(re.match(system.signature, key) for key in state):
            return system.name
    return None
