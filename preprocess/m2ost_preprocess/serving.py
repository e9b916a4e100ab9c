"""What the models in ``model_repository`` share. Imports nothing of Triton: the models hand it in."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from .contract import EngineInfo
from .errors import PreprocessError, SlideNotFound


def check_environment() -> None:
    """Refuse an environment in which the Python backend corrupts tensors without a word.

    Raises
    ------
    RuntimeError
        If numpy is 2 or later: the stub of tritonserver 2.51 then hands out zeros for inputs.
    """
    if int(np.__version__.split(".")[0]) >= 2:
        raise RuntimeError(
            f"numpy {np.__version__} in the server's environment corrupts the tensors of Triton's Python backend; "
            "run: pip install 'numpy<2'"
        )


def parameters(config_json: str) -> dict[str, str]:
    """The string parameters of a model's config, from ``args['model_config']``."""
    raw = json.loads(config_json).get("parameters", {})
    return {key: value["string_value"] for key, value in raw.items()}


def engine_info(config_json: str) -> EngineInfo:
    """The engine's identity and geometry, from ``args['model_config']`` of any model of a release."""
    return EngineInfo.from_parameters(parameters(config_json))


def log_line(event: str, **fields: Any) -> str:
    """One JSON object for Triton's log, which the supervisor unwraps."""
    return json.dumps({"event": event, **fields}, ensure_ascii=False, default=str)


def triton_error(pb_utils: Any, error: PreprocessError) -> Any:
    """A ``TritonError`` for a whole request, its code telling a missing slide from a bad one."""
    code = pb_utils.TritonError.NOT_FOUND if isinstance(error, SlideNotFound) else pb_utils.TritonError.INVALID_ARG
    return pb_utils.TritonError(str(error), code)


def text(value: Any) -> str:
    """One element of a BYTES tensor as text; bytes that are no UTF-8 become replacement characters."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
