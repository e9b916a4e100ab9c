"""The state of a run between two epochs, in safetensors: what a killed run goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from m2ost_contract import complete_file
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..weights import CheckpointError


@dataclass
class Progress:
    """How far a run has come.

    Parameters
    ----------
    epoch : int
        Epochs done.
    best_epoch : int
        The one whose weights are kept; 0 for none yet.
    best_score : float
        Its validation score, where there is one.
    config : dict
        The run's settings: a run resumes with the same ones only.
    """

    config: dict[str, Any]
    epoch: int = 0
    best_epoch: int = 0
    best_score: float = float("-inf")


def save_state(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write modules, optimizer and progress under their final name at once or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"{name}.{key}": value.detach().clone() for key, value in module.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": torch.as_tensor(value).clone() for slot, value in slots.items()}
    with complete_file(path) as scratch:
        save_file(tensors, scratch, {"progress": json.dumps(asdict(progress))})


def read_state(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> Progress:
    """Inverse of :func:`save_state`: loads modules and optimizer in place.

    Raises
    ------
    CheckpointError
        If the file is damaged or belongs to another network.
    """
    try:
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        for name, module in modules.items():
            prefix = f"{name}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no state of this run ({error}); remove the file to start anew") from error
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, slot = key.split(".")
            slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    return progress
