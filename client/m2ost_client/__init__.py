"""Streaming client for served M2OST releases, whole-slide prediction, and the embedded server. Never imports torch."""

from .errors import (
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
from .server.supervisor import TritonServer
from .stream import SpotBatch, SpotStream, StreamOptions

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
