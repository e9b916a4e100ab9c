"""How a server speaks TLS, whose certificates and which token it takes, and how its supervisor asks it all the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from m2ost_contract import PROBE_SENDER

from ..credentials import FOR_SERVERS, TOKEN_KEY, ChannelAccess, Credentials, read_certificate
from ..errors import InputError

TOKEN_APIS = ("inference", "metadata", "model-config")
"""What a server with a token answers to nobody without. Health stays open, for probes that know none."""

TOKEN_ARGUMENT = f"--grpc-restricted-protocol={','.join(TOKEN_APIS)}:{TOKEN_KEY}="
"""How the argument begins that the token ends."""

CLIENT_ROOTS = "client-roots.pem"

_PROBE_VALID_DAYS = 3650


def check_pair(credentials: Credentials) -> x509.Certificate | None:
    """A server's certificate once all its files have been checked; None where it speaks no TLS.

    Raises
    ------
    InputError
        As :meth:`~m2ost_client.credentials.Credentials.open`; or if the certificate is for no name, or there is none
        and certificates of clients are asked for.
    """
    credentials.read_token()
    if credentials.ca is not None:
        if credentials.certificate is None:
            raise InputError("--tls-ca has clients show a certificate, which takes a server with --tls-cert, --tls-key")
        read_certificate(credentials.ca)
    if credentials.read_pair(FOR_SERVERS) is None or credentials.certificate is None:
        return None
    certificate, _ = read_certificate(credentials.certificate)
    if not _name_of(certificate):
        raise InputError(
            f"{credentials.certificate}: is for no name; have it signed with the names and addresses by which clients "
            "ask for the server (subjectAltName)"
        )
    return certificate


def tls_arguments(credentials: Credentials, client_roots: Path | None) -> list[str]:
    """What tritonserver is told of TLS.

    Parameters
    ----------
    credentials : Credentials
        Of the server.
    client_roots : Path or None
        Certificates of whoever signs those of clients; None asks for none.
    """
    arguments: list[str] = []
    if credentials.certificate is not None and credentials.key is not None:
        arguments += [
            "--grpc-use-ssl=1",
            f"--grpc-server-cert={credentials.certificate.absolute()}",
            f"--grpc-server-key={credentials.key.absolute()}",
        ]
    if client_roots is not None:
        arguments += ["--grpc-use-ssl-mutual=1", f"--grpc-root-cert={client_roots.absolute()}"]
    return arguments


def probe_access(credentials: Credentials, folder: Path) -> tuple[ChannelAccess, Path | None]:
    """How a server's own supervisor asks it, whatever its certificate is for and whoever signed it.

    The server's certificate itself is trusted, by a name that it holds. Where clients must show one, the supervisor
    shows one that it signs for this server alone, whose key is in its memory only.

    Parameters
    ----------
    credentials : Credentials
        Of the server.
    folder : Path
        Of the server's own; who it is to trust is written there.

    Returns
    -------
    ChannelAccess
    Path or None
        Certificates of whoever signs those of clients, and the supervisor's own.

    Raises
    ------
    InputError
        As :func:`check_pair`.
    """
    leaf, token = check_pair(credentials), credentials.read_token()
    if leaf is None or credentials.certificate is None:
        return ChannelAccess(token=token), None
    key, certificate, roots = None, None, None
    if credentials.ca is not None:
        key, certificate = _new_pair()
        roots = folder / CLIENT_ROOTS
        roots.write_bytes(credentials.ca.read_bytes() + b"\n" + certificate)
    channel = grpc.ssl_channel_credentials(credentials.certificate.read_bytes(), key, certificate)
    name = ("grpc.ssl_target_name_override", _name_of(leaf))
    return ChannelAccess(channel=channel, token=token, options=(name,)), roots


def _name_of(certificate: x509.Certificate) -> str:
    """A name or an address that a certificate is for; empty where there is none."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return hosts[0].replace("*", PROBE_SENDER) if hosts else ""


def _new_pair() -> tuple[bytes, bytes]:
    """Key and certificate of a supervisor, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, PROBE_SENDER)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_PROBE_VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret, certificate.public_bytes(Encoding.PEM)
