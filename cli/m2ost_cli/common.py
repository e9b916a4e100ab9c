"""What the commands share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from m2ost_contract import ENV_READER, READERS, M2OSTError, install_command
from m2ost_preprocess.home import user_cache

if TYPE_CHECKING:
    from m2ost_client.credentials import Credentials


class UserError(M2OSTError):
    """A command cannot go on; the message says what, where and what to do."""


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
        help="Who reads slides: cucim, openslide, image, or auto, the default: the first that gives a file's pixels.",
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
    if reader not in READERS:
        raise UserError(f"--reader must be one of {', '.join(READERS)}, not {reader!r}")
    if not reads_here and reader != os.environ.get(ENV_READER):  # the variable may be meant for other commands
        raise UserError(f"that server reads its slides in its own way; start it with --reader {reader}")
    os.environ[ENV_READER] = reader


TlsCa = Annotated[
    Path | None,
    typer.Option("--tls-ca", help="PEM file: who signed the certificates that are trusted. Or M2OST_TLS_CA."),
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", help="PEM file: the certificate that is shown. Or M2OST_TLS_CERT.")
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="PEM file: its key. Or M2OST_TLS_KEY.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with the server's token as its only line. Or M2OST_TOKEN_FILE."),
]

StorageTimeout = Annotated[
    float,
    typer.Option(
        min=0.1,
        help="Longest wait for one answer, or one block of a file, of a storage, in seconds; then it tries again.",
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


def cache_folder() -> Path:
    """Where exports that are made once are kept."""
    return user_cache() / "m2ost-triton"


def read_genes(panel: Path | None, outputs: int) -> tuple[str, ...]:
    """The gene panel from a file; without one, ``outputs`` names that say that they are none."""
    with needs("export"):
        from m2ost.checkpoint import read_panel
    return read_panel(panel) if panel else tuple(f"untrained_{i:03d}" for i in range(outputs))
