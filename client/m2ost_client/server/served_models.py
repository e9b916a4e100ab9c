"""The models of the folders that one server loads: their configs, and what stands beside a release's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from m2ost_contract import (
    MODEL_ENGINE,
    MODEL_GUARD,
    MODEL_INFO,
    MODEL_PATCHES,
    MODEL_SLIDE,
    MODEL_TILER,
    SLIDE,
    Manifest,
    ManifestError,
    Release,
)
from m2ost_serving.repository import parse_config

from ..errors import ServerStartError

OWN_MODELS = {MODEL_ENGINE, MODEL_GUARD, MODEL_INFO, MODEL_PATCHES, MODEL_SLIDE, MODEL_TILER}
"""Models of every release that is served alone."""

ENSEMBLE = "ensemble"
"""Platform of a model that has no process of its own."""

MAY_TAKE_LONG = "may_take_long"
"""Parameter of a model's config: "1" where one request may keep the model for any time, "0" where none may."""


def read_configs(folder: Path, profile: str) -> dict[str, Any]:
    """Every model's config as Triton would read it under a profile: name → ``ModelConfig``.

    Parameters
    ----------
    folder : Path
        A model repository.
    profile : str
        Triton's ``--model-config-name``: ``configs/NAME.pbtxt`` of a model that has it, else its ``config.pbtxt``.

    Raises
    ------
    ManifestError
        If a config cannot be read.
    """
    configs = {}
    for default in sorted(folder.glob("*/config.pbtxt")):
        own = default.parent / "configs" / f"{profile}.pbtxt"
        configs[default.parent.name] = _parse(own if own.is_file() else default)
    return configs


def _parse(path: Path) -> Any:
    try:
        return parse_config(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ManifestError(f"{path}: cannot be read ({error}); export its folder anew") from error


def read_hashes(folder: Path) -> dict[str, str]:
    """What the ``manifest.json`` of a model repository, of whatever system, says of its files: path → sha256.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ManifestError
        If it is damaged.
    """
    path = folder / Manifest.FILENAME
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except FileNotFoundError as error:
        words = f"{folder}: no {path.name}, which says what its files are; give the folder as it was exported"
        raise FileNotFoundError(words) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ManifestError(f"{path}: damaged manifest ({error!r}); export its folder anew") from error


def models_beside(releases: Sequence[Release], folders: Iterable[Path], profile: str) -> dict[str, Any]:
    """The models with a process of their own that are served beside releases: name → ``ModelConfig``.

    Parameters
    ----------
    releases : sequence of Release
        With the names of their models.
    folders : iterable of Path
        What else the server loads.
    profile : str
        Triton's ``--model-config-name``.

    Raises
    ------
    ServerStartError
        If two folders hold a model of one name.
    ManifestError
        If a config cannot be read.
    """
    found: dict[str, Any] = {}
    where = {
        release.engine.names.of(name): release.folder
        for release in releases
        for name in {*OWN_MODELS, *read_configs(release.folder, profile)}
    }
    for folder in folders:
        for name, config in read_configs(folder, profile).items():
            if name in where:
                raise ServerStartError(f"{where[name]} and {folder} both hold a model {name}; serve one of them")
            where[name] = folder
            if config.platform != ENSEMBLE:
                found[name] = config
    return found


def may_take_long(config: Any) -> bool:
    """Whether one request may keep a model for any time: its config says so, else whether it takes a whole slide."""
    if MAY_TAKE_LONG in config.parameters:
        return bool(config.parameters[MAY_TAKE_LONG].string_value == "1")
    return config.max_batch_size == 0 and any(tensor.name == SLIDE for tensor in config.input)
