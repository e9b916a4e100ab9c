"""Streaming client for served M2OST releases, whole-slide prediction, and the embedded server. Never imports torch."""

from .errors import (
    ClientError,
    OutputError,
    ReleaseChanged,
    RequestRejected,
    ServerStartError,
    ServerUnavailable,
)
from .host import Ports
from .stream import SpotBatch, SpotStream, StreamOptions
from .supervisor import ServerOptions, TritonServer

__all__ = [
    "ClientError",
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
