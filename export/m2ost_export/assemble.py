"""A release folder out of its parts. No torch: engines are added where they are built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from m2ost_contract import MODEL_ENGINE, EngineInfo, EnginePlan, Manifest, sha256_file
from m2ost_serving.repository import MODELS_TOOL, models_sha256, served_alone, write_repository

_TOOLS = ("m2ost-triton", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def engine_folder(release: Path) -> Path:
    """Where a release's ONNX and engine files lie."""
    return release / MODEL_ENGINE / "1"


def assemble(
    scratch: Path,
    info: EngineInfo,
    *,
    architecture: dict[str, Any],
    parity: dict[str, Any],
    graph: dict[str, Any],
    tools: dict[str, str],
    plans: Sequence[EnginePlan] = (),
    name: str = "",
) -> Manifest:
    """Write the repository and the manifest around an ONNX file and its engines.

    Parameters
    ----------
    scratch : Path
        Holds the folders of the graphs and the engines, and nothing else.
    info : EngineInfo
        Without its ``release_sha256``.
    architecture, parity, graph, tools, plans, name
        See :class:`Manifest`.

    Returns
    -------
    Manifest
    """
    info = replace(info, release_sha256="")
    manifest = Manifest(
        info, architecture, parity, {**tools, MODELS_TOOL: models_sha256(info)}, {}, graph, tuple(plans), name
    )
    instructions, parameters = manifest.bf16_instructions, served_alone(manifest.served_name)
    write_repository(scratch, info, plans, bf16_instructions=instructions, parameters=parameters)
    # The identity is that of every file as it stands without the identity itself, which the configs carry.
    info = replace(info, release_sha256=sha256_json(file_hashes(scratch)))
    write_repository(scratch, info, plans, bf16_instructions=instructions, parameters=parameters)
    manifest = replace(manifest, engine=info, files=file_hashes(scratch))
    manifest.write(scratch)
    return manifest


def tool_versions() -> dict[str, str]:
    """Versions of what makes an export, by name."""
    return {name: _version(name) for name in _TOOLS}


def file_hashes(folder: Path) -> dict[str, str]:
    """Relative path → sha256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


def sha256_json(value: dict[str, str]) -> str:
    """sha256 of a mapping, whatever its order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
