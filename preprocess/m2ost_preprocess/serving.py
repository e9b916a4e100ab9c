"""What the models in ``model_repository`` share. Imports nothing of Triton: the models hand it in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .contract import FINGERPRINT_PARAMETER, PYRAMID_PARAMETER, RELEASE_PARAMETER, EngineInfo
from .errors import PreprocessError, SlideNotFound, UnsupportedRequest
from .network import read_url


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


MAX_WAITING_REQUESTS = 64
"""Requests that may wait for tiler and engine. A tiled one holds its views: 14 MiB at 32 rows, 0.9 GiB in all."""

METRICS_URL_ENV = "M2OST_METRICS_URL"
"""Environment variable with the address of the server's own metrics, where it is not Triton's default."""

_PENDING = re.compile(r'^nv_inference_pending_request_count\{model="(\w+)"[^}]*\} (\d+)', re.MULTILINE)


def waiting_requests(models: Sequence[str]) -> int:
    """Requests that wait in this server's queues, as the server's own metrics count them.

    The pipeline's limit is kept by this count and not by Triton's ``max_queue_size`` or queue timeouts. With one of
    those set, Triton's batcher prepares no batch while the instance is busy and afterwards looks for it every 500 ms
    only (``SupportPrefetching`` in its scheduler): measured on two cores, a tenth of the engine's time.

    Parameters
    ----------
    models : sequence of str
        Whose queues.

    Raises
    ------
    OSError
        If the metrics do not answer within a second; says which variable gives their address.
    """
    url = os.environ.get(METRICS_URL_ENV, "http://localhost:8002/metrics")
    try:
        page = read_url(url, 1.0)
    except OSError as error:
        raise OSError(f"{error}; set {METRICS_URL_ENV} to this server's metrics") from error
    return sum(int(count) for model, count in _PENDING.findall(page) if model in models)


def parameters(config_json: str) -> dict[str, str]:
    """The string parameters of a model's config, from ``args['model_config']``."""
    raw = json.loads(config_json).get("parameters", {})
    return {key: value["string_value"] for key, value in raw.items()}


def engine_info(config_json: str) -> EngineInfo:
    """The engine's identity and geometry, from ``args['model_config']`` of any model of a release."""
    return EngineInfo.from_parameters(parameters(config_json))


MAX_TEXT, MAX_ITEMS = 500, 8
"""What is repeated of a request, in answers and in the log: of a text so many characters, of a list so many items. A
request of 256 names of 4,000 bytes would else leave a line of a megabyte, and gRPC passes on no answer's words beyond
16 KiB."""


def log_line(event: str, **fields: Any) -> str:
    """One JSON object for Triton's log, which the supervisor unwraps; long texts and lists in it are cut short."""
    shown = {name: _bounded(value) for name, value in fields.items()}
    return _sendable(json.dumps({"event": event, **shown}, ensure_ascii=False, default=str))


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}… ({len(value)} characters)"
    if isinstance(value, list):
        more = [f"… ({len(value)} in all)"] if len(value) > MAX_ITEMS else []
        return [_bounded(item) for item in value[:MAX_ITEMS]] + more
    return value


def _sendable(words: str) -> str:
    """Inside the stub the system's own errors have a file's name as bytes, which Triton takes for no text."""
    return words.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def triton_error(pb_utils: Any, error: PreprocessError) -> Any:
    """A ``TritonError`` for a whole request, its code telling a missing slide from a bad one."""
    code = pb_utils.TritonError.NOT_FOUND if isinstance(error, SlideNotFound) else pb_utils.TritonError.INVALID_ARG
    return pb_utils.TritonError(_sendable(str(error)), code)


@dataclass(frozen=True)
class Asked:
    """What a request says beside its tensors.

    Parameters
    ----------
    request_id : str
        Empty where it has none.
    release : str or None
        The release that it is meant for; None where it does not care.
    pyramid : bool
        Whether views may come from the slide's own lower levels.
    fingerprint : bool
        Of ``slide_info``: whether the content's identity alone is asked for.
    """

    request_id: str
    release: str | None = None
    pyramid: bool = False
    fingerprint: bool = False


def read_request(request: Any) -> Asked:
    """What a request says beside its tensors.

    Parameters
    ----------
    request : InferenceRequest
        Of the Python backend's.

    Raises
    ------
    UnsupportedRequest
        If its id or a parameter is not UTF-8, or a parameter of ours is of another type than it should be.
    """
    try:
        request_id = str(request.request_id())
        told = json.loads(request.parameters() or "{}")
    except ValueError as error:  # a UnicodeDecodeError is one
        raise UnsupportedRequest(f"the request's id or a parameter cannot be read: {error}") from error
    for name, kind in ((RELEASE_PARAMETER, str), (PYRAMID_PARAMETER, bool), (FINGERPRINT_PARAMETER, bool)):
        if not isinstance(told.get(name, kind()), kind):
            found = _bounded(repr(told[name]))
            raise UnsupportedRequest(f"the request's parameter {name} must be a {kind.__name__}, not {found}")
    return Asked(
        request_id,
        told.get(RELEASE_PARAMETER),
        told.get(PYRAMID_PARAMETER, False),
        told.get(FINGERPRINT_PARAMETER, False),
    )


def request_id(request: Any) -> str:
    """The id of a request, for the log; empty where it is no text."""
    try:
        return str(request.request_id())
    except ValueError:
        return ""


def wrong_release(pb_utils: Any, asked: Asked, release_sha256: str) -> Any | None:
    """A ``TritonError`` for a request that was meant for another release, or None.

    A client that reconnects to a server with a new release is told so, and mixes no two within one slide.
    """
    if asked.release in (None, release_sha256):
        return None
    message = f"this server serves release {release_sha256}, the request is for {_bounded(asked.release)}"
    return pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)


def text(value: Any) -> str:
    """One element of a BYTES tensor as text; bytes that are no UTF-8 become replacement characters."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
