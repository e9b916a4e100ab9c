"""`m2ost serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from m2ost_preprocess.home import expanded
from m2ost_preprocess.slides import SlideRoots

from . import panels
from .common import (
    Reader,
    TraceOtlp,
    UserError,
    needs,
    one_of,
    use_reader,
)
from .embedded import LEVELS, json_lines
from .numeric import positive
from .server_options import (
    ClientsCa,
    GrpcPort,
    Host,
    HttpPort,
    MetricsPort,
    Profile,
    ServerCert,
    ServerKey,
    ServerToken,
)


def split_roots(specifications: list[str]) -> dict[str, Path]:
    """``NAME=FOLDER`` or ``FOLDER`` (named after itself) → name and folder."""
    roots: dict[str, Path] = {}
    for specification in specifications:
        name, separator, folder = specification.partition("=")
        path = expanded(folder if separator else specification).resolve()
        key = name if separator else path.name
        if key in roots:
            raise UserError(f"two slide roots are called {key!r}; name them: --slides NAME=FOLDER")
        roots[key] = path
    return roots


def parse_roots(specifications: list[str]) -> SlideRoots:
    """The slide roots of a server that is to start."""
    try:
        return SlideRoots(split_roots(specifications))
    except ValueError as error:
        raise UserError(str(error)) from error


def serve(
    releases: Annotated[
        list[Path], typer.Argument(metavar="RELEASE", help="Release folder. Several are each served under its name.")
    ],
    slides: Annotated[
        list[str], typer.Option("--slides", help="Folder of slides, as FOLDER or NAME=FOLDER; repeatable.")
    ],
    istar: Annotated[
        Path | None, typer.Option(help="Folder that `m2ost export-istar` wrote, to serve beside the release.")
    ] = None,
    host: Host = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    http: Annotated[
        bool,
        typer.Option(
            "--http",
            help="Speak HTTP too. One HTTP request can end this tritonserver, so put a proxy in front of it.",
            rich_help_panel=panels.ADDRESSES,
        ),
    ] = False,
    http_port: HttpPort = 8000,
    metrics_port: MetricsPort = 8002,
    tls_cert: ServerCert = None,
    tls_key: ServerKey = None,
    tls_ca: ClientsCa = None,
    token_file: ServerToken = None,
    profile: Profile = "cpu",
    reader: Reader = None,
    trace_otlp: TraceOtlp = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(help="File for probes. While the server is ready it exists and is under a minute old."),
    ] = None,
    start_timeout_s: Annotated[
        float,
        typer.Option(
            parser=positive,
            metavar="SECONDS",
            help="Longest time until the server is ready. A profile that builds an engine needs minutes.",
        ),
    ] = 120,
    log_level: Annotated[str, typer.Option(help="Lowest level to print: debug, info, warning or error.")] = "info",
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print the command that starts tritonserver, and exit.")
    ] = False,
) -> None:
    """Serve one or several releases on NVIDIA Triton, and restart the server if it dies.

    The log is one JSON object a line. Ctrl-C or SIGTERM stops the server cleanly.
    """
    with needs("client"):
        from m2ost_client.credentials import Credentials
        from m2ost_client.server.command import HTTP_RISK, ServerOptions
        from m2ost_client.server.host import Ports
        from m2ost_client.server.supervisor import TritonServer
    one_of("--log-level", log_level, LEVELS)
    use_reader(reader, reads_here=True)
    if istar is not None:
        from m2ost_istar.manifest import IStarManifest

        IStarManifest.read(istar)  # its errors say what makes such a folder
    options = ServerOptions(
        release=releases[0],
        others=tuple(releases[1:]),
        roots=parse_roots(slides),
        beside=(istar,) if istar else (),
        host=host,
        ports=Ports(grpc_port, http_port, metrics_port),
        http=http,
        credentials=Credentials(ca=tls_ca, certificate=tls_cert, key=tls_key, token_file=token_file),
        profile=profile,
        trace_otlp=trace_otlp,
        ready_file=ready_file,
        start_timeout_s=start_timeout_s,
    )
    if http:
        print(f"warning: --http: {HTTP_RISK}", file=sys.stderr)
    server = TritonServer(options, on_log=json_lines(sys.stdout, log_level))
    if print_command:
        print(server.print_command())
        return
    try:
        with server:
            server.wait()
    except KeyboardInterrupt:
        return
