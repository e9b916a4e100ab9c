"""Images and containers of the tests, by podman."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.data import REPOSITORY

BUILT = REPOSITORY / "build" / "deploy"
BASE, SERVER, CLIENT = "localhost/m2ost-base:test", "localhost/m2ost-server:test", "localhost/m2ost-client:test"

SETTINGS = """[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
runtime = "runc"
[network]
network_backend = "netavark"
"""
"""For machines on which a container may not raise its limits, and with cgroups that crun does not know; with names for
the containers of a network."""


def need_containers() -> None:
    """Skip the test where images cannot be built; in CI it fails."""
    need_programs("podman", "buildah", BUILT / "base.tar")


def need_programs(*programs: str | Path) -> None:
    """Skip the test where one of these programs or files is absent; in CI it fails."""
    missing = [str(it) for it in programs if not (it.exists() if isinstance(it, Path) else shutil.which(it))]
    if missing:
        reason = f"absent: {', '.join(missing)} (deploy/install-test-tools.sh brings them)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def tool(name: str, *arguments: object, **options) -> str:
    """What one of the checking programs prints."""
    return _run(BUILT / "tools" / "bin" / name, *arguments, **options)


def podman(*arguments: object, **options) -> str:
    """What podman prints."""
    return _run("podman", *arguments, **options)


def _run(program: str | Path, *arguments: object, **options) -> str:
    settings = BUILT / "containers.conf"
    settings.write_text(SETTINGS)
    done = subprocess.run(
        [program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=options.pop("stderr", subprocess.PIPE),
        text=True,
        env={**os.environ, "CONTAINERS_CONF": str(settings)},
        **options,
    )
    told = (done.stdout + (done.stderr or ""))[-4000:]
    assert done.returncode == 0, f"{program} {' '.join(map(str, arguments))}\n{told}"
    return done.stdout


def build(target: str, tag: str, *options: object) -> str:
    """Build an image of deploy/Containerfile on Debian; what has not changed is taken from the last time."""
    import_base()
    # How this machine's pip reaches an index: certificates, settings, local folders of wheels.
    mounted = [p for p in ("/etc/ssl/certs", "/etc/pip.conf") if Path(p).exists()]
    volumes = [word for path in mounted for word in ("--volume", f"{path}:{path}:ro")]
    build_image(REPOSITORY / "deploy" / "Containerfile", REPOSITORY, tag, "--target", target, *options, *volumes)
    return tag


def import_base() -> None:
    """Make the base of Debian's an image."""
    if BASE not in podman("images", "--format", "{{.Repository}}:{{.Tag}}").split():
        podman("import", BUILT / "base.tar", BASE)


def build_image(file: Path, context: Path, tag: str, *options: object) -> None:
    """Build an image on the base."""
    command = ("bud", "--isolation", "chroot", "--layers", "--format", "docker", "--build-arg", f"BASE={BASE}")
    _run("buildah", *command, *options, "--tag", tag, "--file", file, context)


def said(name: str) -> str:
    """What a container has printed, errors too."""
    return podman("logs", name, stderr=subprocess.STDOUT)


def inspect(kind: str, name: str) -> dict:
    """What podman knows of an image or a container."""
    return json.loads(podman(kind, "inspect", name))[0]


@contextmanager
def container(image: str, *command: object, options: tuple[object, ...] = ()) -> Iterator[str]:
    """A container that runs a command, as a strict cluster would let it; its id."""
    strict = ("--user", "10001:10001", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--network", "host")
    strict += ("--security-opt", "no-new-privileges", "--shm-size", "512m", "--memory", "4g")
    name = podman("run", "--detach", *strict, *options, image, *command).strip()
    try:
        yield name
    finally:
        podman("rm", "--force", "--time", "0", name)
