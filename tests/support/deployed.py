"""The server's image, run as it is deployed: plain, or with TLS and a token."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from m2ost_client.credentials import Credentials

from tests.support.certificates import FOR_SERVERS, Authority
from tests.support.containers import container, podman
from tests.support.machine import kept_ports, wait_for

GROUP = 10001
"""Of the user in the image: who may read the files of a secret, as in Kubernetes."""


@dataclass(frozen=True)
class Secrets:
    """Files of a server with TLS and a token, and of its clients.

    Parameters
    ----------
    folder : Path
        Of the server's, to be mounted at ``/secrets``.
    known : Credentials
        What clients show and trust.
    wrong : Credentials
        The same with another token.
    token : str
    """

    folder: Path
    known: Credentials
    wrong: Credentials
    token: str

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of ``m2ost serve``."""
        files = {"--tls-cert": "server.crt", "--tls-key": "server.key", "--token-file": "token"}
        return tuple(word for flag, name in files.items() for word in (flag, f"/secrets/{name}"))

    @property
    def options(self) -> tuple[str, ...]:
        """Of the container."""
        return ("--volume", f"{self.folder}:/secrets:ro")


def make_secrets(folder: Path, host: str = "127.0.0.1") -> Secrets:
    """Make them anew; the certificate is for this host."""
    server, clients = folder / "server", folder / "clients"
    for made in (server, clients):
        made.mkdir()
    authority, token = Authority(server), secrets.token_urlsafe(24)
    pair = authority.sign("server", host, usage=FOR_SERVERS)
    (server / "token").write_text(f"{token}\n")
    for path in (pair.key, server / "token"):
        path.chmod(0o440)
        os.chown(path, os.getuid(), GROUP)
    for name, text in (("token", token), ("wrong", secrets.token_urlsafe(24))):
        (clients / name).touch(0o600)
        (clients / name).write_text(f"{text}\n")
    known, wrong = (Credentials(ca=authority.file, token_file=clients / name) for name in ("token", "wrong"))
    return Secrets(server, known, wrong, token)


@contextmanager
def served(
    image: str, release: Path, slides: Path, *more: str, options: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, str]]:
    """The address of a server in a container, its metrics and the container's id, once it says that it is ready.

    Parameters
    ----------
    image : str
    release, slides : Path
    *more : str
        Further arguments of ``m2ost serve``.
    options : tuple of str
        Of the container.
    """
    with kept_ports(2) as (grpc, metrics):
        command = ["serve", "/release", "--slides", "slides=/slides", "--ready-file", "/tmp/m2ost-ready"]
        command += ["--grpc-port", grpc, "--metrics-port", metrics, *more]
        volumes = ("--volume", f"{release}:/release:ro", "--volume", f"{slides}:/slides:ro")
        with container(image, *command, options=(*volumes, *options)) as name:
            wait_for(lambda: is_healthy(name), f"ready; {podman('logs', name)[-2000:]}", 120)
            yield f"127.0.0.1:{grpc}", f"http://127.0.0.1:{metrics}/metrics", name


def is_healthy(name: str) -> bool:
    """Whether the container's health check is content."""
    try:
        podman("healthcheck", "run", name)
    except AssertionError:
        return False
    return True
