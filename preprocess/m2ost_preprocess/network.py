"""Which way a request goes: to this machine straight, to others as the environment's proxies say."""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import urllib.request
from functools import lru_cache
from urllib.parse import urlsplit

GRPC_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""The variables in which gRPC looks for a proxy, in its order; it knows them in small letters only."""

_GRPC_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


def is_here(host: str) -> bool:
    """Whether a host is this machine: a proxy elsewhere would ask itself, and one here can only pass the request on.

    Parameters
    ----------
    host : str
        An address, without brackets, or a name. Of names, ``localhost`` is known and nothing is looked up.

    Returns
    -------
    bool
        True for loopback, for the address of all interfaces, and for that of one of them.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified:
        return True
    with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((host, 0))  # granted for an address of this machine's only
        except OSError:
            return False
    return True


def host_of(address: str) -> str:
    """The host of ``host:port`` or of a URL, without brackets; empty where there is none."""
    try:
        return urlsplit(address if "//" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""


def through_proxy(address: str) -> str:
    """For an error: the proxy through which gRPC reaches an address.

    Parameters
    ----------
    address : str
        ``host:port``.

    Returns
    -------
    str
        Begins with a space and has no user's name and password; empty where the address is reached straight.
    """
    host = host_of(address)
    variable = next((name for name in GRPC_PROXIES if name in os.environ), "")
    if not os.environ.get(variable) or is_here(host):
        return ""
    exceptions = next((os.environ[name] for name in _GRPC_EXCEPTIONS if name in os.environ), "")
    if urllib.request.proxy_bypass(host, {"no": exceptions}):
        return ""
    proxy = _without_secrets(os.environ[variable])
    return f" through the proxy of {variable}, {proxy} (no_proxy={host} leaves it out)"


def channel_options(address: str) -> list[tuple[str, int]]:
    """Options of every gRPC channel of ours: messages of any size, and no proxy to this machine.

    Parameters
    ----------
    address : str
        ``host:port``.
    """
    sizes = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    return [*sizes, ("grpc.enable_http_proxy", 0)] if is_here(host_of(address)) else sizes


def read_url(url: str, timeout_s: float) -> str:
    """The text behind a URL.

    Parameters
    ----------
    url : str
    timeout_s : float
        Longest time for a step of it, in seconds.

    Raises
    ------
    OSError
        If there is no whole answer; says why, and through which proxy it was asked for.
    """
    host, scheme, proxy = host_of(url), url.partition(":")[0], ""
    if not is_here(host) and not urllib.request.proxy_bypass(host):
        proxy = urllib.request.getproxies().get(scheme, "")
    try:
        with _opener(scheme, proxy).open(url, timeout=timeout_s) as answer:
            return str(answer.read().decode(errors="replace"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        through = f" through the proxy {_without_secrets(proxy)} (no_proxy={host} leaves it out)" if proxy else ""
        raise OSError(f"{url}: no answer{through}: {error}") from error


@lru_cache(maxsize=8)  # to make one reads the system's certificates
def _opener(scheme: str, proxy: str) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({scheme: proxy} if proxy else {}))


def _without_secrets(proxy: str) -> str:
    scheme, separator, rest = proxy.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
