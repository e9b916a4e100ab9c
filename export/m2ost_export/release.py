"""A release: one immutable folder that is a whole Triton model repository, with its manifest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from m2ost.checkpoint import ModelCard, complete_folder
from m2ost.network import M2OST
from m2ost_preprocess.contract import MODEL_ENGINE, EngineInfo, Manifest, sha256_file

from .graph import ExportError, export_onnx, measure_parity
from .repository import write_repository

ONNX_FILE = "model.onnx"
_TOOLS = ("m2ost-triton", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def build_release(model: M2OST, card: ModelCard, destination: Path) -> Manifest:
    """Export a checkpoint and write its release; nothing is left behind unless every gate passes.

    Parameters
    ----------
    model : M2OST
        In eval mode, float32.
    card : ModelCard
        Its card, with the sha256 of the saved weights.
    destination : Path
        The release folder; must not exist.

    Returns
    -------
    Manifest

    Raises
    ------
    ExportError
        If the graph differs from the network by more than 1e-4 at any batch size.
    FileExistsError
        If ``destination`` exists: a release is immutable.
    """
    with complete_folder(destination) as scratch:
        onnx_path = scratch / ONNX_FILE
        export_onnx(model, onnx_path)
        parity = measure_parity(model, onnx_path)
        if not parity.passed:
            raise ExportError(
                f"refused: ONNX Runtime differs from PyTorch by {parity.max_abs_diff} (batch: max |Δ|), "
                f"tolerance {parity.tolerance:g}; no release was written"
            )
        info = EngineInfo(
            genes=card.genes,
            views=model.config.views,
            mpp=card.mpp,
            target=card.target,
            trained=card.trained,
            precision="fp32",
            checkpoint_sha256=card.sha256,
            onnx_sha256=sha256_file(onnx_path),
            release_sha256="",
        )
        write_repository(scratch, info)
        onnx_path.rename(scratch / MODEL_ENGINE / "1" / ONNX_FILE)
        # The identity is that of every file as it stands without the identity itself, which the configs carry.
        info = replace(info, release_sha256=sha256_json(file_hashes(scratch)))
        write_repository(scratch, info)
        manifest = Manifest(
            engine=info,
            architecture=model.config.to_dict(),
            parity={
                "tolerance": parity.tolerance,
                "max_abs_diff": {str(b): d for b, d in parity.max_abs_diff.items()},
            },
            tools=tool_versions(),
            files=file_hashes(scratch),
        )
        manifest.write(scratch)
    return manifest


def file_hashes(folder: Path) -> dict[str, str]:
    """Relative path → sha256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


def sha256_json(value: dict[str, str]) -> str:
    """sha256 of a mapping, whatever its order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def tool_versions() -> dict[str, str]:
    """Versions of what made an export."""
    return {name: _version(name) for name in _TOOLS}


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
