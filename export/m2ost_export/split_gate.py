"""The gate of body and tail in bfloat16: measured on the engine that serves them, on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from m2ost.network import M2OST
from m2ost_serving.engine.mixed import MixedOpenVinoEngine

from .gate import MIN_R_GENE, Agreement, agreement, predict_all
from .probes import Views

ENGINE_ROWS = 32
"""Rows of a batch, as the profile has them; the values do not depend on it."""

MEASURED_FILE = "bf16_gate.json"
"""In a checkpoint's folder: what the gate measured of its weights, for releases that are made where no slide is."""


@dataclass(frozen=True)
class SplitGate:
    """What was measured of body and tail, and whether it passes.

    Parameters
    ----------
    agreements : tuple of Agreement
        One a slide.
    instructions : str
        With which instruction set.
    """

    agreements: tuple[Agreement, ...]
    instructions: str

    @property
    def passed(self) -> bool:
        """Whether all is finite, and r per gene at least ``MIN_R_GENE`` on every slide."""
        return all(a.finite and a.min_r_gene >= MIN_R_GENE for a in self.agreements)

    def in_words(self) -> str:
        """All figures, a line each."""
        return "\n".join(f"  {a.in_words()}" for a in self.agreements)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for the manifest."""
        return {
            "reference": "PyTorch, float32",
            "min_r_gene": MIN_R_GENE,
            "instructions": self.instructions,
            "openvino": version("openvino"),
            "measured": [asdict(a) for a in self.agreements],
        }


def measure_split_gate(
    model: M2OST, body: Path, tail: Path, genes: Sequence[str], slides: Sequence[tuple[str, Views]]
) -> SplitGate:
    """Compare body and tail, as the profile ``cpu-bf16`` serves them, with the float32 network.

    Parameters
    ----------
    model : M2OST
        The reference, float32.
    body, tail : Path
        The graphs.
    genes : sequence of str
        The panel, in output order.
    slides : sequence of (str, list of ndarray)
        Names and views of real spots.

    Raises
    ------
    EngineError
        If OpenVINO is not installed, or does not compute in bfloat16 on this processor.
    """
    engine = MixedOpenVinoEngine(body, tail, model.config.views)
    found = []
    for name, views in slides:
        parts = []
        for first in range(0, len(views[0]), ENGINE_ROWS):
            batch = (np.ascontiguousarray(view[first : first + ENGINE_ROWS]) for view in views)
            parts.append(engine.run(dict(zip(model.config.views.names, batch, strict=True))))
        found.append(agreement("bfloat16", name, predict_all(model, views), np.concatenate(parts), genes))
    return SplitGate(tuple(found), engine.instructions)


def measured_gate(checkpoint: Path, sha256: str) -> dict[str, Any] | None:
    """What the gate measured before of a checkpoint's weights, as its folder keeps it.

    Parameters
    ----------
    checkpoint : Path
        Its folder.
    sha256 : str
        Of its weights.

    Returns
    -------
    dict or None
        As :meth:`SplitGate.to_dict` gives it; None where nothing is kept, or what is kept is of other weights.
    """
    path = checkpoint / MEASURED_FILE
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return dict(kept["gate"]) if kept["checkpoint_sha256"] == sha256 else None
