"""Options of commands that start a server, or look at what one needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import panels

Host = Annotated[
    str, typer.Option("--host", help="Address that the server listens on.", rich_help_panel=panels.ADDRESSES)
]
GrpcPort = Annotated[
    int,
    typer.Option(
        "--grpc-port", min=0, max=65535, help="Port of gRPC; 0 takes any free one.", rich_help_panel=panels.ADDRESSES
    ),
]
HttpPort = Annotated[
    int,
    typer.Option(
        "--http-port",
        min=0,
        max=65535,
        help="Port of HTTP, with --http; 0 takes any free one.",
        rich_help_panel=panels.ADDRESSES,
    ),
]
MetricsPort = Annotated[
    int,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65535,
        help="Port of the metrics; 0 takes any free one.",
        rich_help_panel=panels.ADDRESSES,
    ),
]
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
