"""Streaming client for served M2OST releases, whole-slide prediction, and the embedded server. Never imports torch."""

from .command import ServerOptions
from .errors import (
    ClientError,
    InputError,
    OutputError,
    ReleaseChanged,
    RequestRejected,
    ServerStartError,
    ServerUnavailable,
)
from .host import Ports
from .stream import SpotBatch, SpotStream, StreamOptions
from .supervisor import TritonServer

__all__ = [
    "ClientError",
    "InputError",
    "OutputError",
    "Ports",
    "ReleaseChanged",
    "RequestRejected",
    "ServerOptions",
    "ServerStartError",
    "ServerUnavailable",
    "SpotBatch",
    "SpotStream",
    "StreamOptions",
    "TritonServer",
]
