"""All that is looked at: everything for a person who asks, the deciding part of it for a server that is to start."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from m2ost_contract import Manifest, ManifestError, Release

from ...credentials import Credentials
from ...errors import InputError, ServerStartError
from ..command import ServerOptions, check_profile
from ..host import SHM, Ports, held_ports, numeric_host
from ..installation import Installation, find_installation, how_to_create
from ..plain_paths import temporary_parent
from ..security import check_pair
from ..served_models import read_hashes
from . import checks
from .collect import CannotAsk, host_facts, server_facts
from .facts import HostFacts, Profile, ServerFacts
from .findings import Finding, Level, error, errors, ok, warning
from .profile import read_profile, together
from .release import check_files, extra_files, files_served

RENEW_WITHIN = timedelta(days=14)
"""Before a certificate expires, a server that starts warns."""

_EXPORT = "m2ost export CHECKPOINT --out NEW_RELEASE"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def examine(
    configs: Path,
    *,
    release: Path | None,
    profile: str,
    roots: Mapping[str, Path],
    host: str,
    ports: Ports,
    credentials: Credentials | None = None,
) -> list[Finding]:
    """Look at everything that decides whether a release can be served here.

    Parameters
    ----------
    configs : Path
        Where the served models' configs are: the release, or the templates where there is none.
    release : Path or None
        The release folder.
    profile : str
        Triton's ``--model-config-name``.
    roots : mapping of str to Path
        Slide roots: name → folder.
    host : str
        Address to listen on.
    ports : Ports
        Ports to listen on.
    credentials : Credentials, optional
        Of the server.

    Returns
    -------
    list of Finding
        In the order in which they are best mended.
    """
    findings: list[Finding] = []
    manifest, wanted = None, None
    try:
        manifest = Manifest.read(release) if release is not None else None
        check_profile(configs, profile)
        wanted = read_profile(configs, profile)
    except (OSError, ManifestError) as problem:
        findings.append(error("release", str(problem), _EXPORT))
    except ServerStartError as problem:
        findings.append(error("profile", str(problem), "choose one of these with --profile"))
    if manifest is not None and wanted is not None:
        findings += checks.check_identity(manifest, wanted) + checks.check_engine_choice(wanted)
        findings += checks.check_precision(manifest, wanted)
    if manifest is not None and release is not None:
        findings += check_files(release, manifest.files) + extra_files(release, manifest)
    findings += _check_server(wanted, manifest)
    findings += check_folders() + check_ports(host, ports) + check_roots(roots)
    findings += check_security(credentials or Credentials(), host=host, http=ports.http is not None)
    return findings


def _check_server(profile: Profile | None, manifest: Manifest | None) -> list[Finding]:
    """The tritonserver, its environment and the machine, for a profile that could be read."""
    try:
        installation = find_installation()
    except ServerStartError as problem:
        return [error("tritonserver", str(problem), how_to_create())]
    findings = [ok("tritonserver", f"{installation.executable}, glibc {platform.libc_ver()[1]}")]
    if profile is None:
        return findings
    findings += checks.check_backends(profile, installation.backends())
    host = host_facts(ask_driver=True)
    findings += checks.check_limits(host)
    try:
        server = server_facts(installation, probe=True, bf16=profile.uses_bf16)
    except CannotAsk as problem:
        findings.append(error("environment", str(problem), how_to_create()))
        return findings + checks.check_memory(profile, host)
    findings += checks.check_environment(profile, server, version("m2ost-triton"))
    findings += _check_engine(profile, manifest, host, server)
    return findings + checks.check_memory(profile, host)


def _check_engine(profile: Profile, manifest: Manifest | None, host: HostFacts, server: ServerFacts) -> list[Finding]:
    findings = checks.check_gpu(profile, host, server)
    findings += checks.check_onnxruntime(profile, server) + checks.check_openvino(profile, server)
    findings += checks.check_bf16(profile, manifest, server)
    if manifest is not None:
        findings += checks.check_engine(profile, manifest, server.gpus or host.gpus, server)
    return findings


def check_folders() -> list[Finding]:
    """There is a folder for what is laid out for a server, and /dev/shm can be written to."""
    findings = []
    if not os.access(SHM, os.W_OK | os.X_OK):
        message = f"{SHM} cannot be written to by this user; Triton's models hand on tensors through it"
        findings.append(error("/dev/shm", message, "mount -o remount,rw,mode=1777 /dev/shm"))
    try:
        findings.append(ok("temporary files", str(temporary_parent())))
    except ServerStartError as problem:
        findings.append(error("temporary files", str(problem), "export TMPDIR=/a/folder/of/your/own"))
    return findings


def check_ports(host: str, ports: Ports) -> list[Finding]:
    """The host is this machine, the ports are free, and as many as there are services."""
    try:
        host = numeric_host(host)
    except ServerStartError as problem:
        return [error("host", str(problem), "--host 127.0.0.1")]
    findings = []
    for name, port in vars(ports).items():
        if port is None:
            continue
        try:
            with held_ports(host, replace(Ports(http=None), **{name: port})):
                pass
        except ServerStartError as problem:
            findings.append(error("ports", str(problem), f"ss -ltnp 'sport = :{port}' names who listens"))
    if not findings:
        try:
            with held_ports(host, ports):
                pass
        except ServerStartError as problem:
            findings.append(error("ports", str(problem), "--grpc-port, --http-port and --metrics-port choose them"))
    named = (f"{name} {port or 'any'}" for name, port in vars(ports).items() if port is not None)
    return findings or [ok("ports", ", ".join(named))]


def check_roots(roots: Mapping[str, Path]) -> list[Finding]:
    """The slide roots are folders that can be read."""
    findings = []
    for name, folder in roots.items():
        subject = f"slides {name}"
        if not folder.is_dir():
            findings.append(error(subject, f"{folder}: no such folder", "--slides NAME=FOLDER with one that exists"))
        elif not os.access(folder, os.R_OK | os.X_OK):
            findings.append(error(subject, f"{folder}: cannot be read by this user", f"chmod a+rX {folder}"))
        elif not any(folder.iterdir()):
            findings.append(warning(subject, f"{folder} is empty", "put slides there, or mount the right folder"))
        else:
            findings.append(ok(subject, str(folder)))
    return findings


def check_security(credentials: Credentials, *, host: str, http: bool) -> list[Finding]:
    """Certificate, key, token and authority can be used, for a while yet, and nothing goes round them."""
    if not credentials.given():
        return []
    findings = []
    if http:
        message = "Triton's HTTP has no TLS, and asks for no token of gRPC's: whoever speaks it would go round both"
        findings.append(error("security", message, "leave --http out"))
    try:
        certificate = check_pair(credentials)
    except InputError as problem:
        return [
            *findings,
            error("security", str(problem), "give --tls-cert and its --tls-key, as PEM files"),
        ]
    if certificate is None:
        if host not in _LOOPBACK:
            message = f"the token travels in plain text to whoever asks on {host}"
            findings.append(warning("security", message, "--tls-cert and --tls-key"))
        return findings or [ok("security", "a token")]
    ends = certificate.not_valid_after_utc
    left = ends - datetime.now(UTC)
    if left < RENEW_WITHIN:
        message = f"{credentials.certificate} expires on {ends:%Y-%m-%d %H:%M} UTC, in {left.days} days"
        findings.append(warning("security", message, "renew it, and start the server anew: it reads it at its start"))
    shown = ", certificates of clients" if credentials.ca else ""
    return findings or [
        ok("security", f"TLS{shown}{', a token' if credentials.token_file else ''}, to {ends:%Y-%m-%d}")
    ]


def check_start(options: ServerOptions, releases: Sequence[Release], installation: Installation) -> list[Finding]:
    """Refuse to start what cannot run, before it is tried.

    The part of :func:`examine` that decides, and no more than that: the files that the profile serves, and all of the
    folders beside; its backends, /dev/shm, the user's limits, a folder for temporary files; certificates and token;
    OpenVINO, and whether it has bfloat16, where the profile runs on it; GPU, driver and runtimes, which take a second
    or two to ask, only where the profile is for a GPU.

    Parameters
    ----------
    options : ServerOptions
        How it is to be served.
    releases : sequence of Release
        What is to be served.
    installation : Installation
        The tritonserver.

    Returns
    -------
    list of Finding
        What does not keep it from being served, and had better be mended.

    Raises
    ------
    ServerStartError
        Says what does not fit, in the words of ``m2ost doctor``.
    """
    try:
        profiles = [read_profile(release.folder, options.profile) for release in releases]
        beside = {folder: read_hashes(folder) for folder in options.beside}
    except (OSError, ManifestError) as problem:
        raise ServerStartError(str(problem)) from problem
    needs_gpu = any(profile.needs_gpu for profile in profiles)
    host = host_facts(ask_driver=needs_gpu)
    findings = checks.check_memory(together(profiles), host) + checks.check_limits(host) + check_folders()
    findings += check_security(options.credentials, host=options.host, http=options.http)
    server: ServerFacts | None = None
    if needs_gpu or any(profile.uses_openvino for profile in profiles):
        bf16 = not needs_gpu and any(profile.uses_bf16 for profile in profiles)
        try:
            server = server_facts(installation, probe=needs_gpu, bf16=bf16)
        except CannotAsk as problem:
            findings.append(error("environment", str(problem), how_to_create()))
    for release, profile in zip(releases, profiles, strict=True):
        manifest = release.manifest
        findings += checks.check_identity(manifest, profile) + checks.check_engine_choice(profile)
        findings += checks.check_precision(manifest, profile)
        findings += checks.check_backends(profile, installation.backends())
        if server is not None and profile.needs_gpu:
            findings += checks.check_environment(profile, server, version("m2ost-triton"))
            findings += _check_engine(profile, manifest, host, server)
        elif server is not None:
            findings += checks.check_openvino(profile, server) + checks.check_bf16(profile, manifest, server)
        gpus = (server.gpus if server is not None else ()) or host.gpus
        findings += check_files(release.folder, files_served(manifest, profile, gpus))
    for folder, files in beside.items():
        findings += check_files(folder, files)
    wrong = errors(dict.fromkeys(findings))
    if wrong:
        lines = "".join(f"\n  {finding}" for finding in wrong)
        folders = ", ".join(str(release.folder) for release in releases)
        raise ServerStartError(f"{folders} cannot be served here with profile {options.profile!r}:{lines}")
    return [finding for finding in dict.fromkeys(findings) if finding.level is Level.WARNING]
