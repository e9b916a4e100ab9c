"""Which way a request goes: to this machine straight, to others as the environment's proxies say; to which servers."""

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

_LISTED = ("ipv4:", "ipv6:")
"""How gRPC's addresses begin that list servers."""

_LOOKED_UP = "dns:"
"""How those begin whose name may stand for several."""


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


def is_list(address: str) -> bool:
    """Whether an address lists servers by their numbers: ``ipv4:A:PORT,B:PORT``."""
    return address.startswith(_LISTED)


def may_be_several(address: str) -> bool:
    """Whether requests to an address may go to several servers: one that is listed, or looked up by its name."""
    return is_list(address) or address.startswith(_LOOKED_UP)


def servers_of(address: str) -> list[str]:
    """``host:port`` of all that an address of gRPC's names.

    Parameters
    ----------
    address : str
        ``host:port``, ``dns:///name:port``, or a list: ``ipv4:A:PORT,B:PORT``.
    """
    if is_list(address):
        return address.partition(":")[2].lstrip("/").split(",")
    if address.startswith(_LOOKED_UP):
        return [address.removeprefix(_LOOKED_UP).rpartition("/")[2]]
    return [address]


def all_here(address: str) -> bool:
    """Whether all that an address of gRPC's names is this machine: see :func:`servers_of` and :func:`is_here`."""
    return all(is_here(host_of(server)) for server in servers_of(address))


def through_proxy(address: str) -> str:
    """For an error: the proxy through which gRPC reaches an address.

    Parameters
    ----------
    address : str
        As for :func:`servers_of`.

    Returns
    -------
    str
        Begins with a space and has no user's name and password; empty where the address is reached straight.
    """
    host = host_of(servers_of(address)[0])
    variable = next((name for name in GRPC_PROXIES if name in os.environ), "")
    if not os.environ.get(variable) or is_here(host):
        return ""
    exceptions = next((os.environ[name] for name in _GRPC_EXCEPTIONS if name in os.environ), "")
    if urllib.request.proxy_bypass(host, {"no": exceptions}):
        return ""
    proxy = _without_secrets(os.environ[variable])
    return f" through the proxy of {variable}, {proxy} (no_proxy={host} leaves it out)"


def channel_options(address: str) -> list[tuple[str, int | str]]:
    """Options of every gRPC channel of ours: messages of any size, and no proxy to this machine.

    Requests to an address that may stand for several servers go to each in turn.

    Parameters
    ----------
    address : str
        As for :func:`servers_of`.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]
    if all_here(address):
        options.append(("grpc.enable_http_proxy", 0))
    if may_be_several(address):
        options.append(("grpc.lb_policy_name", "round_robin"))
    return options


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
