"""What the commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from m2ost_contract import ENV_READER, READERS, M2OSTError, install_command
from m2ost_preprocess.home import user_cache

from . import panels
from .numeric import positive

if TYPE_CHECKING:
    from m2ost_client.credentials import Credentials


EXIT_INTERRUPTED = 130


class UserError(M2OSTError):
    """A command cannot go on; the message says what, where and what to do."""


def one_of(option: str, text: str | None, known: Iterable[str]) -> None:
    """Refuse a word that is not among those that an option takes; None is no word.

    Raises
    ------
    UserError
        Names them.
    """
    if text is not None and text not in (known := tuple(known)):
        raise UserError(f"{option} must be one of {', '.join(known)}, not {text!r}")


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a failed import into a message that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"this command needs the extra '{extra}' ({error}): {install_command(extra)}") from error


Reader = Annotated[
    str | None,
    typer.Option(
        "--reader",
        envvar=ENV_READER,
        help="Reader of all slides: cucim, openslide, image or auto. By default auto chooses one for each slide.",
        rich_help_panel=panels.SLIDE,
    ),
]


def use_reader(reader: str | None, *, reads_here: bool) -> None:
    """Have every decoder that this command starts, and those of a server that it starts, use one reader.

    Parameters
    ----------
    reader : str or None
        Of ``--reader``.
    reads_here : bool
        Whether slides are read by such a decoder at all.
    """
    if reader is None:
        return
    one_of("--reader", reader, READERS)
    if not reads_here and reader != os.environ.get(ENV_READER):  # the variable may be meant for other commands
        raise UserError(f"that server reads its slides in its own way; start it with --reader {reader}")
    os.environ[ENV_READER] = reader


TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        help="PEM file with the certificates of the authorities that this client trusts. Or M2OST_TLS_CA.",
        rich_help_panel=panels.TRUST,
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        help="PEM file with the certificate that this client shows. Or M2OST_TLS_CERT.",
        rich_help_panel=panels.TRUST,
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        "--tls-key", help="PEM file with the key of that certificate. Or M2OST_TLS_KEY.", rich_help_panel=panels.TRUST
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="File whose only line is the server's token. Or M2OST_TOKEN_FILE.",
        rich_help_panel=panels.TRUST,
    ),
]


def _receiver(url: str) -> str:
    """The address of a receiver of traces, looked at before anything is begun."""
    from m2ost_client.tracing import otlp_url

    return otlp_url(url)


TraceOtlp = Annotated[
    str | None,
    typer.Option(
        "--trace-otlp",
        parser=_receiver,
        metavar="URL",
        help="Hand OpenTelemetry traces to this receiver of OTLP over HTTP: http://HOST:4318.",
        rich_help_panel=panels.OUTPUT,
    ),
]

StorageTimeout = Annotated[
    float,
    typer.Option(
        parser=positive,
        metavar="SECONDS",
        help="Longest wait for a storage's answer or for one block of a file, in seconds. Then the client asks again.",
        rich_help_panel=panels.STORAGE,
    ),
]


def client_credentials(
    ca: Path | None, certificate: Path | None, key: Path | None, token_file: Path | None, *, elsewhere: bool
) -> Credentials:
    """What a command shows a server, by its options and by the environment.

    Parameters
    ----------
    ca, certificate, key, token_file : Path or None
        Of the command's options.
    elsewhere : bool
        Whether it asks a server elsewhere; one that it starts itself is asked for nothing of the kind.
    """
    from m2ost_client.credentials import Credentials

    given = Credentials(ca=ca, certificate=certificate, key=key, token_file=token_file)
    if elsewhere:
        return Credentials.from_environment(**given.given())
    if given.given():
        raise UserError("--tls-ca, --tls-cert, --tls-key and --token-file are for a server elsewhere; give --server")
    return given  # the variables may be meant for other commands


def traced_command(url: str | None, name: str, facts: dict[str, str]) -> AbstractContextManager[None]:
    """A command's block, whose spans are handed to the receiver of ``--trace-otlp``; without one, nothing is noted."""
    if url is None:
        return nullcontext()
    from m2ost_client.tracing import traced

    return traced(url, name, facts, warn=lambda words: print(f"warning: {words}", file=sys.stderr))


def cache_folder() -> Path:
    """Where exports that are made once are kept."""
    return user_cache() / "m2ost-triton"


def read_genes(panel: Path | None, outputs: int) -> tuple[str, ...]:
    """The gene panel of ``--panel``; without one, ``outputs`` names that say that they are none."""
    with needs("export"):
        from m2ost.checkpoint import read_panel
    return read_panel(panel) if panel else tuple(f"untrained_{i:03d}" for i in range(outputs))
