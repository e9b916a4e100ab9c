"""The command ``doctor``: does a release fit this machine?"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from . import panels
from .common import needs
from .serve_command import split_roots
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

EXIT_DOES_NOT_FIT = 1


def doctor(
    release: Annotated[
        Path | None, typer.Argument(help="A release folder. Without one, only the machine is examined.")
    ] = None,
    profile: Profile = "cpu",
    slides: Annotated[
        list[str] | None,
        typer.Option("--slides", help="Folder of slides, as FOLDER or NAME=FOLDER; repeatable."),
    ] = None,
    host: Host = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    http: Annotated[
        bool,
        typer.Option("--http", help="Examine for a server that speaks HTTP too.", rich_help_panel=panels.ADDRESSES),
    ] = False,
    http_port: HttpPort = 8000,
    metrics_port: MetricsPort = 8002,
    tls_cert: ServerCert = None,
    tls_key: ServerKey = None,
    tls_ca: ClientsCa = None,
    token_file: ServerToken = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, for a program.")] = False,
) -> None:
    """Check whether this machine can serve a release; each problem comes with the command that mends it.

    Exit status: 0 it can; 1 it cannot.
    """
    with needs("client"):
        from m2ost_client.credentials import Credentials
        from m2ost_client.server.doctor import errors, examine
        from m2ost_client.server.host import Ports
    with ExitStack() as stack:
        # Without a release, the templates say what a release of the paper's model would need.
        configs = release or stack.enter_context(as_file(files("m2ost_repository")))
        findings = examine(
            configs,
            release=release,
            profile=profile,
            roots=split_roots(slides or []),
            host=host,
            ports=Ports(grpc_port, http_port if http else None, metrics_port),
            credentials=Credentials(ca=tls_ca, certificate=tls_cert, key=tls_key, token_file=token_file),
        )
    wrong = errors(findings)
    if as_json:
        report = {
            "fits": not wrong,
            "release": None if release is None else str(release),
            "profile": profile,
            "findings": [asdict(finding) for finding in findings],
        }
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            print(finding)
        print(f"\nerrors: {len(wrong)}; this machine cannot serve the release so" if wrong else "\nthis machine fits")
    if wrong:
        raise typer.Exit(EXIT_DOES_NOT_FIT)
