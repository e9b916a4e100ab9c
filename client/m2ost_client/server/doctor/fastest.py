"""Which profile serves a release fastest on this machine's processor, of those that the release passed the gate of."""

from __future__ import annotations

from pathlib import Path

from m2ost_contract import Manifest

from ..command import DEFAULT_PROFILE
from ..installation import find_installation
from . import checks
from .collect import CannotAsk, server_facts
from .findings import Level
from .profile import read_profile

AUTO = "auto"
"""In place of a profile's name: the one that :func:`fastest_profile` chooses."""

FASTER = ("cpu-bf16", "cpu-openvino")
"""Profiles that are faster than the default where they run, the fastest first. Those of GPUs are chosen by name."""


def fastest_profile(release: Path) -> tuple[str, list[str]]:
    """Choose a profile.

    Parameters
    ----------
    release : Path
        The release folder.

    Returns
    -------
    str
        The profile: it runs here with what the server's environment has, and the release passed its gate.
    list of str
        Why none of the faster ones, a line each.

    Raises
    ------
    FileNotFoundError, ManifestError
        If ``release`` is none, or damaged.
    ServerStartError
        If there is no tritonserver.
    """
    manifest = Manifest.read(release)
    try:
        server = server_facts(find_installation(), probe=False, bf16=True)
    except CannotAsk as problem:
        return DEFAULT_PROFILE, [str(problem)]
    reasons = []
    for name in FASTER:
        if not list(release.glob(f"*/configs/{name}.pbtxt")):
            reasons.append(f"{name}: the release has no such profile; export the checkpoint anew")
            continue
        profile = read_profile(release, name)
        found = checks.check_openvino(profile, server) + checks.check_bf16(profile, manifest, server)
        found += checks.check_precision(manifest, profile)
        against = [finding.message for finding in found if finding.level is not Level.OK]
        if not against:
            return name, reasons
        reasons.append(f"{name}: {'; '.join(against)}")
    return DEFAULT_PROFILE, reasons
