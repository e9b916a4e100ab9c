"""What the models in ``model_repository`` share. Imports nothing of Triton: the models hand it in."""

from __future__ import annotations

import importlib
import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import (
    BACKGROUND_PARAMETER,
    FINGERPRINT_PARAMETER,
    OTHER_RELEASE,
    PROBE_SENDER,
    PROBE_SLIDE,
    PYRAMID_PARAMETER,
    RELEASE_PARAMETER,
    EngineInfo,
    PositionsError,
    Release,
)
from m2ost_preprocess.errors import PreprocessError, SlideChanged, SlideNotFound, SlideTimeout, UnsupportedRequest

from . import replies
from .metrics import Metrics, Refusals
from .queueing import Cancelled, QueueFull, TooLate
from .shared_memory import NoSharedMemory, SharedMemory


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


def given_name(config_json: str) -> str:
    """The name of a model's first output, from ``args['model_config']``."""
    return str(json.loads(config_json)["output"][0]["name"])


RELEASE_LINK = "release"
"""Beside an engine's files on a server of several releases: a link to the release."""

RELEASES_PARAMETER = "releases"
"""Parameter of the config of a tiler of several releases: JSON list of their sha256."""


def release_of(model: Path) -> Release:
    """The release whose model this is, from ``args['model_repository']``.

    Raises
    ------
    FileNotFoundError
        If it is of none.
    ManifestError
        If the manifest is damaged.
    """
    link = model / "1" / RELEASE_LINK
    return Release.open(link.resolve() if link.exists() else model.parent)


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


def triton_error(pb_utils: Any, error: Exception) -> Any:
    """A ``TritonError`` for a whole request; its code tells what a client may do about it."""
    codes = pb_utils.TritonError
    kinds = (
        (Cancelled, codes.CANCELLED),
        (QueueFull, codes.UNAVAILABLE),
        (TooLate, codes.UNAVAILABLE),
        (SlideChanged, codes.UNAVAILABLE),
        (SlideTimeout, codes.INTERNAL),
        (SlideNotFound, codes.NOT_FOUND),
        (PreprocessError, codes.INVALID_ARG),
        (PositionsError, codes.INVALID_ARG),
        (NoSharedMemory, codes.INVALID_ARG),
    )
    code = next((code for kind, code in kinds if isinstance(error, kind)), codes.INTERNAL)
    return codes(_sendable(str(error)), code)


@lru_cache(maxsize=1)
def shared_memory() -> SharedMemory | None:
    """The region of this model's process in /dev/shm; None outside Triton, or where Triton no longer tells of it."""
    try:
        region = importlib.import_module("c_python_backend_utils").shared_memory
        region.free_memory()
    except (ImportError, AttributeError):
        return None
    return SharedMemory(region.free_memory)


LARGE_BYTES = 1 << 16
"""An answer of fewer bytes finds room wherever a server works at all."""


class Reply(replies.Reply):
    """The way back to the client of a request of the Python backend's.

    An answer is a list of ``pb_utils.Tensor``, or an exception, which ``refusals`` count.
    """

    def __init__(self, pb_utils: Any, request: Any, refusals: Refusals) -> None:
        super().__init__(lambda words: pb_utils.Logger.log_error(log_line("reply", error=words)))
        self._pb_utils, self._sender, self._refusals = pb_utils, request.get_response_sender(), refusals

    def _has_gone(self) -> bool:
        return bool(self._sender.is_cancelled())

    def _send(self, answer: Any) -> None:
        final = self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if isinstance(answer, Exception):
            self._refusals.request(answer)
            self._sender.send(self._pb_utils.InferenceResponse(error=triton_error(self._pb_utils, answer)), flags=final)
            return
        response = self._pb_utils.InferenceResponse(answer)
        sizes = [tensor.as_numpy().nbytes for tensor in answer if tensor.is_cpu()]
        memory = shared_memory() if sum(sizes) >= LARGE_BYTES else None
        try:
            with nullcontext() if memory is None else memory.room(sizes):
                self._sender.send(response, flags=final)
        except NoSharedMemory as error:
            self._warn(str(error))
            self._send(error)


def metrics(pb_utils: Any, model: str) -> Metrics:
    """The metrics of a model; one that cannot be told is logged."""
    return Metrics(pb_utils, model, lambda words: pb_utils.Logger.log_error(log_line("metric", error=words)))


ANSWER_S = 5.0
"""Of the time that a client allows, what is kept for the steps after and the answer's way, in seconds."""

MOST_BUDGET_S = 600.0
"""Longest time for a request, in seconds, whatever its client allows."""

_KINDS = {
    RELEASE_PARAMETER: str,
    PYRAMID_PARAMETER: bool,
    FINGERPRINT_PARAMETER: bool,
    BACKGROUND_PARAMETER: bool,
}


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
    background : bool
        Whether requests of others go first.
    timeout_s : float or None
        What Triton's own field ``timeout`` allows, in seconds; None where it is not set.
    """

    request_id: str
    release: str | None = None
    pyramid: bool = False
    fingerprint: bool = False
    background: bool = False
    timeout_s: float | None = None

    def to_parameters(self) -> dict[str, str | bool]:
        """The parameters of a request that passes it on."""
        release = {} if self.release is None else {RELEASE_PARAMETER: self.release}
        return {**release, PYRAMID_PARAMETER: self.pyramid, BACKGROUND_PARAMETER: self.background}

    @property
    def sender(self) -> str:
        """Whose it is: the requests of one run of our client have a common part before the last hyphen of their ids."""
        return self.request_id.rpartition("-")[0]

    def budget_s(self, usual_s: float) -> float:
        """Longest time for it in seconds: what its client allows, less the time for an answer, from 1 to 600."""
        return usual_s if self.timeout_s is None else min(max(1.0, self.timeout_s - ANSWER_S), MOST_BUDGET_S)


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
    for name, kind in _KINDS.items():
        if not isinstance(told.get(name, kind()), kind):
            found = _bounded(repr(told[name]))
            raise UnsupportedRequest(f"the request's parameter {name} must be a {kind.__name__}, not {found}")
    return Asked(
        request_id,
        told.get(RELEASE_PARAMETER),
        told.get(PYRAMID_PARAMETER, False),
        told.get(FINGERPRINT_PARAMETER, False),
        told.get(BACKGROUND_PARAMETER, False),
        request.timeout() / 1e6 or None,
    )


def request_id(request: Any) -> str:
    """The id of a request, for the log; empty where it is no text."""
    try:
        return str(request.request_id())
    except ValueError:
        return ""


def is_probe(asked: Asked, slide: str) -> bool:
    """Whether a request is a supervisor's, and asks for nothing but a sign of life.

    It is answered as one is whose rows have no value, so that no probe counts as a request that failed.
    """
    return asked.sender == PROBE_SENDER and slide == PROBE_SLIDE


def check_release(asked: Asked, *served: str) -> None:
    """Refuse a request that was meant for another release.

    A client that reconnects to a server with a new release is told so, and mixes no two within one slide.

    Parameters
    ----------
    asked : Asked
    *served : str
        sha256 of the releases that the model works for.

    Raises
    ------
    UnsupportedRequest
        Names both.
    """
    if asked.release is not None and asked.release not in served:
        meant = _bounded(asked.release)
        raise UnsupportedRequest(f"{OTHER_RELEASE} {', '.join(served)}, the request is for {meant}")


def text(value: Any) -> str:
    """One element of a BYTES tensor as text; bytes that are no UTF-8 become replacement characters."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
