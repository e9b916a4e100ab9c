"""Weights from files: read without running what is in them, and loaded only where every key fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from m2ost_contract import M2OSTError
from torch import Tensor

_COUNTER = ".num_batches_tracked"

_SHOWN = 40
"""Most problems with keys that a message lists."""


class CheckpointError(M2OSTError):
    """A checkpoint cannot be read, written or converted; the message says where and what to do."""


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load ``weights`` into ``model``, naming every key that is missing, unexpected or of another shape.

    Counters of batches, which files of old versions of PyTorch lack and no prediction needs, may be missing.

    Raises
    ------
    CheckpointError
        If the two do not match exactly.
    """
    fresh = model.state_dict()
    weights = {k: v for k, v in fresh.items() if k.endswith(_COUNTER)} | dict(weights)
    expected = {k: tuple(v.shape) for k, v in fresh.items()}
    problems = key_problems(expected, weights)
    problems += [
        f"{k} has shape {tuple(v.shape)}, expected {expected[k]}"
        for k, v in weights.items()
        if k in expected and tuple(v.shape) != expected[k]
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit the network: {in_words(problems)}")
    model.load_state_dict(weights)


def key_problems(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Every key that is missing or unexpected, in words."""
    missing = [f"missing {k}" for k in expected if k not in found]
    return missing + [f"unexpected {k}" for k in found if k not in expected]


def in_words(problems: Sequence[str]) -> str:
    """Problems in one line; of very many the first."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


def unpickle_weights(path: Path, *, remedy: str, allowed: Sequence[type] = ()) -> Any:
    """What a foreign ``.pth`` holds; nothing in it is ever run.

    Parameters
    ----------
    path : Path
    remedy : str
        What to do about a file that is refused.
    allowed : sequence of type
        Harmless classes that may stand in it beside tensors and plain containers.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or asks for code to be run.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # torch raises whatever a damaged pickle leads it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: refused: not a plain file of weights ({reason}). Only tensors are read, code in a checkpoint is "
            f"never run; {remedy}"
        ) from error


_NESTED = ("state_dict", "model")
"""Under which names training programs keep a state dict beside their own state."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name out of somebody's file: ``.safetensors``, or what ``torch.save`` wrote; nothing in it is run.

    Parameters
    ----------
    path : Path
        A state dict, by itself or under ``state_dict`` or ``model``; a prefix ``module.`` is left out.

    Raises
    ------
    CheckpointError
        If the file is missing, holds anything but tensors by name, or asks for code to be run.
    """
    remedy = "save `model.state_dict()` and give that"
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            raw: Any = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot read the weights: {error}") from error
    else:
        raw = unpickle_weights(path, remedy=remedy)
    for name in _NESTED:
        if isinstance(raw, Mapping) and isinstance(raw.get(name), Mapping):
            raw = raw[name]
    if not isinstance(raw, Mapping) or not raw or not all(isinstance(v, Tensor) for v in raw.values()):
        raise CheckpointError(f"{path}: not a state dict (tensors by name); {remedy}")
    return {str(k).removeprefix("module."): v for k, v in raw.items()}


def as_float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers in float32; counters stay integers."""
    return {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in weights.items()}
