"""What is known of a system beside its network, and how foreign names become its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..architecture import Architecture
from ..module import Network
from ..weights import CheckpointError

FUSED, PLAIN, TWO_STAGE = "fused", "plain", "two_stage"
"""Forms for export: M2OST's own, a network as it stands, and a stage for patches before one for slides."""

Translate = Callable[[Mapping[str, Tensor], str], tuple[Architecture, dict[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class System:
    """A system of the article.

    Parameters
    ----------
    name : str
        As it is given on the command line and stands in ``model.json``.
    title : str
        For people.
    config : type
        Its sizes, with its own views and normalisation as defaults.
    network : callable
        Builds the network of such sizes.
    form : str
        How it is exported: ``FUSED``, ``PLAIN`` or ``TWO_STAGE``.
    translate : callable
        State dict under public names, and where it is from → architecture, and weights under the network's names.
    signature : str
        A public key that no other system's weights have, as a regular expression.
    target : str
        What its published outputs are.
    heads : tuple of str
        Its output layers. Their biases start at the mean of the training targets.
    float32 : tuple of str
        Its parts that compute in float32 in every precision of a plain export.
    tables : tuple of str
        Parameters that start at the standard deviation ``optim.position_std``.
    fresh : tuple of str
        Beginnings of the names of what a file of pretrained weights need not give.
    may_lack : tuple of str
        Beginnings of the names of parts that such a file may lack as a whole; they start afresh then.
    pretrained_names : callable
        State dict of a file of pretrained weights → the network's names.
    variants : mapping
        Sizes by name, where there are several in use.
    """

    name: str
    title: str
    config: type[Architecture]
    network: Callable[[Any], Network]
    form: str
    translate: Translate
    signature: str
    target: str = "log1p_cpm_panel"
    heads: tuple[str, ...] = ()
    float32: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    may_lack: tuple[str, ...] = ()
    pretrained_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """Public names of a system's weights, as they differ from the network's own.

    Parameters
    ----------
    renames : sequence of (str, str)
        Regular expression and replacement, applied in turn to every key.
    dropped : sequence of str
        Regular expressions of keys that are for training only.
    """

    renames: Sequence[tuple[str, str]] = ()
    dropped: Sequence[str] = ()

    def __call__(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under the network's names."""
        renamed = {}
        for key, value in state.items():
            for pattern, replacement in self.renames:
                key = re.sub(pattern, replacement, key)
            if not any(re.match(pattern, key) for pattern in self.dropped):
                renamed[key] = value
        return renamed


def translator(title: str, names: Names, sizes: Callable[[Shapes], Architecture]) -> Translate:
    """How a system's state dict is read: its names changed, then its sizes read off the shapes."""

    def translate(state: Mapping[str, Tensor], source: str) -> tuple[Architecture, dict[str, Tensor]]:
        weights = names(state)
        try:
            return sizes(Shapes(weights, f"{source}: not weights of {title}")), weights
        except ValueError as error:
            raise CheckpointError(f"{source}: {error}") from error

    return translate


class Shapes:
    """Shapes of the tensors of a state dict; one that is missing is an error that names it."""

    def __init__(self, state: Mapping[str, Tensor], problem: str) -> None:
        self._state, self._problem = state, problem

    def __call__(self, key: str, dims: int) -> tuple[int, ...]:
        """The shape of a tensor of ``dims`` axes."""
        if key not in self._state:
            raise CheckpointError(f"{self._problem}: missing {key}")
        shape = tuple(self._state[key].shape)
        if len(shape) != dims:
            raise CheckpointError(f"{self._problem}: {key} has shape {shape}, expected {dims} dimensions")
        return shape

    def count(self, pattern: str) -> int:
        """How many numbers follow each other from 0 or 1 on where ``pattern`` has its group; at least 1."""
        numbers = {int(found.group(1)) for key in self._state if (found := re.match(pattern, key))}
        if not numbers:
            raise CheckpointError(f"{self._problem}: missing {pattern.replace(chr(92), '')}")
        return len(numbers)
