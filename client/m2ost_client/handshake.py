"""Why a server and a client do not come together, by a handshake: gRPC says UNAVAILABLE, whatever the reason."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from m2ost_preprocess.network import servers_of, through_proxy

from .credentials import Credentials

RESTRICTED = "This protocol is restricted"
"""In Triton's words where the token is missing or wrong."""

TIMEOUT_S = 3.0
"""Longest time for each step: to connect, to shake hands, to hear the server's first word, in seconds."""

PAUSE_S = 0.5
"""A server that is just ending may look like one that refuses: only what is found again after so long counts."""

_PROTOCOL = "h2"
_EXPIRED, _NOT_YET_VALID = 10, 9
_OTHER_NAME = (62, 64)
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)
"""OpenSSL's numbers of what is wrong with a certificate (X509_V_ERR_…)."""


def why_refused(address: str, credentials: Credentials) -> str:
    """Why a server that cannot be asked will not be, whoever waits; empty where it is merely away, or nobody can tell.

    Parameters
    ----------
    address : str
        ``host:port``, or another form of gRPC's.
    credentials : Credentials
        What the client trusts and shows; its files have been checked.

    Returns
    -------
    str
        Begins with the server's address.
    """
    if through_proxy(address):
        return ""
    for host, port in _places(address):
        reason = _ask(host, port, credentials)
        if reason:
            time.sleep(PAUSE_S)
            return f"{address}: {reason}" if _ask(host, port, credentials) == reason else ""
    return ""


def wrong_token(address: str, credentials: Credentials) -> str:
    """In words, that the server answered :data:`RESTRICTED`."""
    if credentials.token_file is None:
        return f"{address}: the server wants a token; give --token-file, or M2OST_TOKEN_FILE"
    return f"{address}: the server refuses the token of {credentials.token_file}; ask who runs it for the one it takes"


def _places(address: str) -> Iterator[tuple[str, int]]:
    for server in servers_of(address):
        try:
            parts = urlsplit(f"//{server}")
            host, port = parts.hostname, parts.port
        except ValueError:
            continue
        if host and port:
            yield host, port


def _ask(host: str, port: int, credentials: Credentials) -> str:
    return _speaks_tls(host, port) if credentials.ca is None else _shake_hands(host, port, credentials)


def _speaks_tls(host: str, port: int) -> str:
    """What to do if the server of a plain client speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([_PROTOCOL])
    try:
        with (
            socket.create_connection((host, port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            pass
    except (OSError, UnicodeError) as error:
        if "ALERT" not in str(getattr(error, "reason", "")):  # an alert is TLS too
            return ""
    return "the server speaks TLS; give --tls-ca (M2OST_TLS_CA), the certificate of whoever signed the server's"


def _shake_hands(host: str, port: int, credentials: Credentials) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as gRPC
    context.load_verify_locations(credentials.ca)
    context.set_alpn_protocols([_PROTOCOL])
    if credentials.certificate is not None:
        context.load_cert_chain(credentials.certificate, credentials.key)
    try:
        plain = socket.create_connection((host, port), TIMEOUT_S)
    except (OSError, UnicodeError):
        return ""
    with plain:
        try:
            with context.wrap_socket(plain, server_hostname=host) as secured:
                if secured.selected_alpn_protocol() != _PROTOCOL:
                    return "the server speaks TLS and no gRPC over it; check that this is its gRPC port"
                # In TLS 1.3 a server tells after the handshake what it thinks of the client's certificate.
                said = secured.recv(1)
        except ssl.SSLCertVerificationError as error:
            return _of_the_servers_certificate(error, host, credentials)
        except ssl.SSLError as error:
            return _of_the_connection(str(error.reason or ""), credentials)
        except OSError:
            return ""
    return "" if said else _refused(credentials)  # gRPC's servers begin to speak at once, or end it without a word


def _of_the_servers_certificate(error: ssl.SSLCertVerificationError, host: str, credentials: Credentials) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "the server's certificate, or one that signed it, has expired; have whoever runs it renew it"
    if code == _NOT_YET_VALID:
        return "the server's certificate is not valid yet; check the clocks of both machines"
    if code in _OTHER_NAME:
        return (
            f"the server's certificate is not for {host!r}; ask for the server by a name that it holds, or have it "
            "signed for this one"
        )
    if code in _UNKNOWN_ISSUER:
        return (
            f"the server's certificate was not signed by {credentials.ca}; give --tls-ca the certificate of whoever "
            "signed it"
        )
    return f"the server's certificate is not accepted: {error.verify_message}"


def _of_the_connection(reason: str, credentials: Credentials) -> str:
    if reason == "WRONG_VERSION_NUMBER":
        return "the server speaks no TLS; leave --tls-ca out (M2OST_TLS_CA), or have it started with --tls-cert"
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        words = reason.lower().replace("_", " ")
        return f"{_refused(credentials)} ({words})"
    return ""


def _refused(credentials: Credentials) -> str:
    if credentials.certificate is None:
        return "the server wants a certificate of its clients; give --tls-cert and --tls-key"
    return (
        f"the server refuses the certificate {credentials.certificate}; it wants one for clients that was signed by "
        "its --tls-ca"
    )
