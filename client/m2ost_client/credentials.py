"""What a client shows a server, and whom it trusts: files, read and checked before anything is sent."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from m2ost_preprocess.network import all_here, is_list
from tritonclient.grpc import InferenceServerClientPlugin

from .errors import InputError

TOKEN_KEY = "authorization"
TOKEN_HEADER = f"triton-grpc-protocol-{TOKEN_KEY}"
"""Triton looks for the value of its option ``…:authorization=TOKEN`` in this header."""

OPTIONS = {"ca": "--tls-ca", "certificate": "--tls-cert", "key": "--tls-key", "token_file": "--token-file"}
"""Field of :class:`Credentials` → the option of the commands that sets it."""

VARIABLES = {name: "M2OST_" + option.removeprefix("--").replace("-", "_").upper() for name, option in OPTIONS.items()}
"""Field → the environment variable that stands in for the option."""

MOST_TOKEN_CHARACTERS = 4096
"""gRPC takes headers of 8 KiB."""

FOR_CLIENTS, FOR_SERVERS = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
"""What a certificate may be for (extended key usage)."""

_USERS = {FOR_CLIENTS: "clients", FOR_SERVERS: "servers"}
_OTHERS = stat.S_IRWXO


@dataclass(frozen=True, kw_only=True)
class ChannelAccess:
    """What a gRPC channel is opened with.

    Parameters
    ----------
    channel : grpc.ChannelCredentials, optional
        Of TLS; without them the channel is plain.
    token : str, optional
        Goes with every request.
    options : tuple of (str, str)
        Further options of the channel.
    """

    channel: Any = None
    token: str | None = field(default=None, repr=False)
    options: tuple[tuple[str, str], ...] = ()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Headers of a request."""
        return () if self.token is None else ((TOKEN_HEADER, self.token),)

    def admit(self, client: Any) -> Any:
        """Have a client of tritonclient's send the token; returns the client."""
        if self.token is not None:
            client.register_plugin(_Token(self.token))
        return client


class _Token(InferenceServerClientPlugin):  # type: ignore[misc]
    """Adds a token to each request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> None:
        request.headers[TOKEN_HEADER] = self._token


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Files that a client trusts and shows, or a server; none by default. They are read when a channel is opened.

    Parameters
    ----------
    ca : Path, optional
        Certificates, in PEM, of whoever signs those of the other side. A client with them speaks TLS, and nothing else.
    certificate : Path, optional
        One's own, in PEM, followed by those between it and its authority's.
    key : Path, optional
        The certificate's, in PEM, without a password.
    token_file : Path, optional
        Its only line is the token.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None

    @classmethod
    def from_environment(cls, **given: Path | None) -> Credentials:
        """What is given, by field; the rest from :data:`VARIABLES`."""
        named = {name: Path(os.environ[variable]) for name, variable in VARIABLES.items() if os.environ.get(variable)}
        return cls(**{**named, **{name: path for name, path in given.items() if path is not None}})

    def to_environment(self) -> Mapping[str, str]:
        """Variables from which :meth:`from_environment` makes the same."""
        return {VARIABLES[name]: str(path) for name, path in self.given().items()}

    def given(self) -> dict[str, Path]:
        """The files that there are, by field."""
        return {item.name: path for item in fields(self) if (path := getattr(self, item.name)) is not None}

    def open(self, address: str) -> ChannelAccess:
        """Read and check the files of a client.

        Parameters
        ----------
        address : str
            ``host:port``, ``dns:///name:port`` or a list of addresses; who is to be shown them.

        Raises
        ------
        InputError
            If a file cannot be read or used, others can read the key or the token, the certificate has expired, is not
            valid yet, has another key or is not for clients, or the token would travel in plain text. Says what to do.
        """
        if self.ca is None and (self.certificate or self.key):
            raise InputError("--tls-cert and --tls-key need --tls-ca, the certificate of whoever signed the server's")
        roots = None if self.ca is None else _read_roots(self.ca)
        pair = self.read_pair(FOR_CLIENTS)
        token = self.read_token()
        if roots is None:
            if token is not None and not all_here(address):
                raise InputError(
                    f"{self.token_file}: without TLS the token would travel to {address} in plain text; give --tls-ca"
                )
            return ChannelAccess(token=token)
        if is_list(address):
            raise InputError(
                f"{address}: a certificate is for a name, and a list of addresses has none; give dns:///NAME:PORT"
            )
        certificate, key = pair or (None, None)
        return ChannelAccess(channel=grpc.ssl_channel_credentials(roots, key, certificate), token=token)

    def read_pair(self, usage: x509.ObjectIdentifier) -> tuple[bytes, bytes] | None:
        """Certificate and key in PEM, checked; None where there are none.

        Parameters
        ----------
        usage : ObjectIdentifier
            :data:`FOR_CLIENTS` or :data:`FOR_SERVERS`: what the certificate must be for, if it says for what.

        Raises
        ------
        InputError
            As :meth:`open`.
        """
        if self.certificate is None and self.key is None:
            return None
        if self.certificate is None or self.key is None:
            raise InputError("--tls-cert and --tls-key belong together: a certificate, and the key that it is for")
        leaf, pem = read_certificate(self.certificate)
        now = datetime.now(UTC)
        if leaf.not_valid_after_utc < now:
            raise InputError(f"{self.certificate}: expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; renew it")
        if leaf.not_valid_before_utc > now:
            raise InputError(
                f"{self.certificate}: valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only; check this "
                "machine's clock"
            )
        if not _is_for(leaf, usage):
            raise InputError(
                f"{self.certificate}: is not for {_USERS[usage]} (extended key usage); have one signed that is"
            )
        secret = _read_secret(self.key)
        try:
            key = load_pem_private_key(secret, None)
        except TypeError as error:
            raise InputError(
                f"{self.key}: has a password, which nobody is asked for; write it without: openssl pkey -in {self.key} "
                "-out NEW_FILE"
            ) from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InputError(f"{self.key}: holds no private key in PEM") from error
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
            raise InputError(f"{self.key}: is not the key of {self.certificate}; give the two that belong together")
        return pem, secret

    def read_token(self) -> str | None:
        """The token, checked; None where there is none.

        Raises
        ------
        InputError
            As :meth:`open`. The token is not in its words.
        """
        if self.token_file is None:
            return None
        text = _read_secret(self.token_file, MOST_TOKEN_CHARACTERS + 2).strip()
        if not text:
            raise InputError(f"{self.token_file}: is empty; write the token into it, as its only line")
        if len(text) > MOST_TOKEN_CHARACTERS:
            raise InputError(f"{self.token_file}: holds more than {MOST_TOKEN_CHARACTERS} characters, and so no token")
        if not all(0x21 <= character <= 0x7E for character in text):
            raise InputError(
                f"{self.token_file}: holds characters that no header can; a token is one line of visible ASCII without "
                "blanks"
            )
        return text.decode("ascii")


def read_certificate(path: Path) -> tuple[x509.Certificate, bytes]:
    """The first certificate of a file, and the whole file.

    Raises
    ------
    InputError
        If it cannot be read, or holds none in PEM.
    """
    pem = _read(path)
    try:
        return x509.load_pem_x509_certificates(pem)[0], pem
    except ValueError as error:
        raise InputError(f"{path}: holds no certificate in PEM") from error


def _is_for(certificate: x509.Certificate, usage: x509.ObjectIdentifier) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return usage in usages or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages


def _read_roots(path: Path) -> bytes:
    certificate, pem = read_certificate(path)
    if pem.count(b"BEGIN CERTIFICATE") == 1 and certificate.not_valid_after_utc < datetime.now(UTC):
        raise InputError(
            f"{path}: this authority expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; get its new "
            "certificate"
        )
    return pem


def _read(path: Path, most_bytes: int = -1, check: Callable[[os.stat_result], None] = lambda _: None) -> bytes:
    try:
        with path.open("rb") as file:
            check(os.fstat(file.fileno()))
            return file.read(most_bytes)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_secret(path: Path, most_bytes: int = -1) -> bytes:
    """A file that nobody but its user and group may have any access to."""

    def check(facts: os.stat_result) -> None:
        if facts.st_mode & _OTHERS:
            mode = stat.S_IMODE(facts.st_mode)
            raise InputError(f"{path}: every user of this machine has access to it (mode {mode:04o}); chmod o= {path}")

    return _read(path, most_bytes, check)
