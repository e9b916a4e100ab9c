"""What Locust's workers saw of a load for themselves, beside whatever they told their master."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = "WITNESS_FOLDER"
"""The environment variable that names the folder to which workers write."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one worker saw.

    Parameters
    ----------
    answered : int
        Requests.
    spots : int
        Spots with a value in their answers.
    failures : mapping of str to int
        Failed requests by reason.
    centers, expression : ndarray, optional
        Spots of some of the answers and their values; None where nothing was answered.
    """

    answered: int
    spots: int
    failures: Mapping[str, int]
    centers: Any = field(default=None, compare=False)
    expression: Any = field(default=None, compare=False)

    def write(self, folder: Path, name: str) -> None:
        """Write it into a folder under a name that no other worker has."""
        if self.centers is not None:
            np.savez(folder / f"{name}.npz", centers=self.centers, expression=self.expression)
        counts = {key: value for key, value in asdict(self).items() if key not in ("centers", "expression")}
        (folder / f"{name}.json").write_text(json.dumps(counts))


def read_testimony(folder: Path) -> list[Seen]:
    """What each worker wrote."""
    return [Seen(**json.loads(path.read_text()), **_kept(path.with_suffix(".npz"))) for path in folder.glob("*.json")]


def _kept(path: Path) -> dict[str, Any]:
    return dict(np.load(path)) if path.exists() else {}
