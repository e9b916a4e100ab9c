"""A TorchServe archive (``.mar``): the exported program and a handler over the same contract.

TorchServe is archived upstream (2025). This is for those who already run it; the release for Triton is what is tuned.
Its own limit of a request, ``max_request_size``, is 6,553,500 bytes: 14 spots of three views of 224 pixels.
"""

from __future__ import annotations

import io
import json
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from m2ost.card import ModelCard
from m2ost.module import Network
from m2ost.network import M2OST
from m2ost_contract import MAX_ROWS, MODEL_ENGINE, complete_file

from . import torchserve_handler
from .errors import ExportError
from .forms import only_m2ost
from .graph import FP32_TOLERANCE, PARITY_BATCHES
from .probes import probe_views

SUFFIX = ".mar"


def write_archive(model: Network, card: ModelCard, destination: Path) -> float:
    """Write a model archive for TorchServe.

    Parameters
    ----------
    model : Network
        An M2OST in eval mode, float32.
    card : ModelCard
        Its card.
    destination : Path
        ``NAME.mar``; must not exist.

    Returns
    -------
    float
        Largest absolute difference found between the program and the network.

    Raises
    ------
    ExportError
        If that is more than 1e-4 at any batch size, the network is no M2OST, or the name does not end in ``.mar``;
        nothing is written then.
    FileExistsError
        If ``destination`` exists.
    """
    if destination.suffix != SUFFIX:
        raise ExportError(f"{destination}: TorchServe takes archives by the name NAME{SUFFIX}")
    if destination.exists():
        raise FileExistsError(f"{destination} exists and is never overwritten; choose another name or remove it")
    m2ost = only_m2ost(model, "a TorchServe archive")
    program = _export(m2ost)
    worst = _measure(m2ost, program)
    if not worst <= FP32_TOLERANCE:  # false for NaN too
        raise ExportError(
            f"refused: the exported program differs from the network by {worst}, tolerance {FP32_TOLERANCE:g}; "
            "no archive was written"
        )
    stored = io.BytesIO()
    torch.export.save(program, stored)
    members: dict[str, str | bytes] = {
        "MAR-INF/MANIFEST.json": json.dumps(_manifest(), indent=2),
        "card.json": json.dumps({**_describe(card), "views": model.config.views.to_dict()}, indent=2),
        "handler.py": Path(str(torchserve_handler.__file__)).read_text(encoding="utf-8"),
        "model.pt2": stored.getvalue(),
    }
    destination.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(destination) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return worst


def _export(model: M2OST) -> torch.export.ExportedProgram:
    geometry = model.config.views
    example = tuple(torch.zeros(2, *geometry.shape, dtype=torch.uint8) for _ in geometry.names)
    batch = torch.export.Dim("batch", min=1, max=MAX_ROWS)
    return torch.export.export(
        model, example, dynamic_shapes={"views": tuple({0: batch} for _ in geometry.names)}, strict=False
    )


def _measure(model: M2OST, program: torch.export.ExportedProgram) -> float:
    """Largest absolute difference between program and network; NaN where either gives one."""
    network, found = program.module(), []
    for batch in PARITY_BATCHES:
        views = [torch.from_numpy(view) for view in probe_views(model.config.views, batch, batch)]
        with torch.inference_mode():
            found.append(float((network(*views) - model(*views)).abs().max()))
    return float(np.max(found))


def _describe(card: ModelCard) -> dict[str, object]:
    return {
        "genes": list(card.genes),
        "max_rows": MAX_ROWS,
        "mpp": card.mpp,
        "target": card.target,
        "trained": card.trained,
        "checkpoint_sha256": card.sha256,
        "tools": {name: version(name) for name in ("m2ost-triton", "torch")},
    }


def _manifest() -> dict[str, object]:
    return {
        "runtime": "python",
        "model": {
            "modelName": MODEL_ENGINE,
            "serializedFile": "model.pt2",
            "handler": "handler.py",
            "modelVersion": "1.0",
        },
        "archiverVersion": "0.12.0",
    }
