"""Options of commands that start a server, or look at what one needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import panels


def _port(flag: str, words: str) -> Any:
    """An option for a port."""
    return typer.Option(flag, min=0, max=65535, help=words, rich_help_panel=panels.ADDRESSES)


Host = Annotated[
    str, typer.Option("--host", help="Address that the server listens on.", rich_help_panel=panels.ADDRESSES)
]
GrpcPort = Annotated[int, _port("--grpc-port", "Port of gRPC; 0 takes any free one.")]
HttpPort = Annotated[int, _port("--http-port", "Port of HTTP, with --http; 0 takes any free one.")]
MetricsPort = Annotated[int, _port("--metrics-port", "Port of the metrics; 0 takes any free one.")]
Profile = Annotated[
    str,
    typer.Option(
        "--profile",
        help="Engine and device, Triton's --model-config-name: cpu, cpu-openvino, tensorrt, python-gpu …",
        rich_help_panel=panels.ENGINE,
    ),
]
ServerCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        help="PEM file with the server's certificate. With it gRPC speaks TLS only.",
        rich_help_panel=panels.TRUST,
    ),
]
ServerKey = Annotated[
    Path | None,
    typer.Option("--tls-key", help="PEM file with the key of that certificate.", rich_help_panel=panels.TRUST),
]
ClientsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        help="PEM file with authorities. Clients must show a certificate that one of them signed.",
        rich_help_panel=panels.TRUST,
    ),
]
ServerToken = Annotated[
    Path | None,
    typer.Option(
        "--token-file", help="File whose only line is a token that clients must send.", rich_help_panel=panels.TRUST
    ),
]
