"""Streaming client for served M2OST releases, whole slides, archives, and the embedded server. Never imports torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .credentials import Credentials
from .errors import (
    AccessRefused,
    ClientError,
    InputError,
    OutputError,
    ReleaseChanged,
    RequestRejected,
    ServerStartError,
    ServerUnavailable,
)
from .server.command import ServerOptions
from .server.host import Ports
from .server.supervisor import TritonServer, serve
from .stream import SpotBatch, SpotStream, StreamOptions

if TYPE_CHECKING:
    from .archive import RescoreOptions, Servers, read_slides, rescore
    from .dense import DenseOptions, predict_dense
    from .options import PredictOptions
    from .predict import predict_slide

__all__ = [
    "AccessRefused",
    "ClientError",
    "Credentials",
    "DenseOptions",
    "InputError",
    "OutputError",
    "Ports",
    "PredictOptions",
    "ReleaseChanged",
    "RequestRejected",
    "RescoreOptions",
    "ServerOptions",
    "ServerStartError",
    "ServerUnavailable",
    "Servers",
    "SpotBatch",
    "SpotStream",
    "StreamOptions",
    "TritonServer",
    "predict_dense",
    "predict_slide",
    "read_slides",
    "rescore",
    "serve",
]

_LATER = {
    "DenseOptions": "dense",
    "PredictOptions": "options",
    "RescoreOptions": "archive",
    "Servers": "archive",
    "predict_dense": "dense",
    "predict_slide": "predict",
    "read_slides": "archive",
    "rescore": "archive",
}
"""What is imported when it is first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATER[name]}", __name__), name)
