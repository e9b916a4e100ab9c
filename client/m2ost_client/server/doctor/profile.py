"""What a release's configs ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2ost_contract import (
    ENGINE_PARAMETER,
    ENGINE_ROWS,
    ENGINE_ROWS_PARAMETER,
    MODEL_ENGINE,
    MODEL_TILER,
    WAITING_ROWS,
    WAITING_ROWS_PARAMETER,
    ManifestError,
    number_of_rows,
)
from tritonclient.grpc import model_config_pb2

from ..served_models import ENSEMBLE, read_configs
from .facts import Profile

USUAL_ROWS = 32
"""Rows of a request where the caller does not say: what the queue's memory is counted with."""

_SHM_GROWTH = 1.5
"""Size of a model's region in /dev/shm over the tensors in it: it grows before its holes are used again. Measured on
batches of 32 and 256 rows: 46 and 268 MiB in all, for 28 and 221 MiB of tensors."""

_SHM_START_BYTES = 2 << 20
"""Of a model's region before any tensor is in it."""

_BYTES = {"TYPE_UINT8": 1, "TYPE_INT32": 4, "TYPE_INT64": 8, "TYPE_FP32": 4, "TYPE_FP64": 8}
_STRING_BYTES = 1024
"""A slide's name has no more."""


def read_profile(release: Path, name: str) -> Profile:
    """What the configs that Triton would read under a profile ask for.

    Parameters
    ----------
    release : Path
        The release folder.
    name : str
        Triton's ``--model-config-name``.

    Raises
    ------
    ManifestError
        If a config is missing or cannot be read.
    """
    configs = read_configs(release, name)
    if MODEL_ENGINE not in configs or MODEL_TILER not in configs:
        raise ManifestError(f"{release}: no config for {MODEL_ENGINE} or {MODEL_TILER}; export the release anew")
    engine, tiler = configs[MODEL_ENGINE], configs[MODEL_TILER]
    kinds = {group.kind for config in configs.values() for group in config.instance_group}
    return Profile(
        name=name,
        backends=tuple(sorted({c.backend for c in configs.values() if c.backend and c.platform != ENSEMBLE})),
        backend=engine.backend,
        engine=engine.parameters[ENGINE_PARAMETER].string_value if ENGINE_PARAMETER in engine.parameters else "",
        accelerators=tuple(a.name for a in engine.optimization.execution_accelerators.gpu_execution_accelerator),
        needs_gpu=model_config_pb2.ModelInstanceGroup.KIND_GPU in kinds,
        max_rows=engine.max_batch_size,
        shm_bytes=sum(_shm_bytes(c, c.max_batch_size) for c in configs.values() if c.backend == "python"),
        usual_shm_bytes=sum(_shm_bytes(c, USUAL_ROWS) for c in configs.values() if c.backend == "python"),
        usual_rows=USUAL_ROWS,
        queue_bytes=(_engine_rows(tiler) + USUAL_ROWS + _waiting_rows(engine)) * _row_bytes(tiler.output),
        release_sha256=engine.parameters["release_sha256"].string_value,
    )


def together(profiles: Sequence[Profile]) -> Profile:
    """What several releases on one server take: the memory of all. A tiler that they share is counted for each."""

    def total(name: str) -> int:
        return sum(getattr(profile, name) for profile in profiles)

    return replace(
        profiles[0],
        shm_bytes=total("shm_bytes"),
        usual_shm_bytes=total("usual_shm_bytes"),
        queue_bytes=total("queue_bytes"),
    )


def _engine_rows(tiler: Any) -> int:
    """Rows that the tiler may send ahead of the engine; it adds one request when fewer are there."""
    return number_of_rows(_texts(tiler), ENGINE_ROWS_PARAMETER, ENGINE_ROWS)


def _waiting_rows(engine: Any) -> int:
    """Rows of which an engine in the Python backend keeps the views while they wait."""
    return number_of_rows(_texts(engine), WAITING_ROWS_PARAMETER, WAITING_ROWS) if engine.backend == "python" else 0


def _texts(config: Any) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


def _shm_bytes(config: Any, rows: int) -> int:
    """Bytes in /dev/shm of an execution of so many rows: what goes in and what comes out, for every instance."""
    instances = sum(group.count for group in config.instance_group) or 1
    most = min(rows, config.max_batch_size) or 1  # a model without batching takes one request at a time
    return instances * (int(_SHM_GROWTH * most * _row_bytes([*config.input, *config.output])) + _SHM_START_BYTES)


def _row_bytes(tensors: Any) -> int:
    """Bytes of one row. An axis of unknown length counts as one: slide_info alone has such, for one slide at a time."""
    total = 0
    for tensor in tensors:
        kind = model_config_pb2.DataType.Name(tensor.data_type)
        total += _BYTES.get(kind, _STRING_BYTES) * math.prod(max(1, dim) for dim in tensor.dims)
    return total
