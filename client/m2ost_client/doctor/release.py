"""Whether the files of a release are those that were exported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from m2ost_contract import ONNX_FILE, EngineError, Manifest, Release, plan_for

from .facts import Gpu, Profile
from .findings import Finding, error, ok, warning

_EXPORT = "m2ost export CHECKPOINT --out NEW_RELEASE"


def check_files(release: Path, manifest: Manifest, files: Iterable[str]) -> list[Finding]:
    """Compare the sha256 of files with the manifest.

    Parameters
    ----------
    release : Path
    manifest : Manifest
    files : iterable of str
        Which of the manifest's.

    Returns
    -------
    list of Finding
        An error for every file that is missing, truncated or swapped; one that all is well where none is.
    """
    wanted = set(files)
    changed = Release(release, manifest).changed(wanted)
    if changed:
        return [error("files", f"{release}/{words}", f"copy the release again, or {_EXPORT}") for words in changed]
    size = sum((release / name).stat().st_size for name in wanted)
    return [ok("files", f"{len(wanted)} files, {size / 1e6:.1f} MB, sha256 as in the manifest")]


def extra_files(release: Path, manifest: Manifest) -> list[Finding]:
    """Warn of files that the release was not exported with; what Python compiled from its models is none of them."""
    present = {str(p.relative_to(release)) for p in release.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    extra = sorted(present - set(manifest.files) - {Manifest.FILENAME})
    return [
        warning(
            "files",
            f"{release / name} is not in the manifest; Triton loads whatever lies in a release",
            f"move it away: mv {release / name} /tmp",
        )
        for name in extra
    ]


def files_served(manifest: Manifest, profile: Profile, gpus: Iterable[Gpu]) -> set[str]:
    """The files that are read under a profile: all but the graph and the plans that it does not serve."""
    engines = {ONNX_FILE, *(engine.file for engine in manifest.engines)}
    served = set()
    if not profile.runtime:
        served.add(ONNX_FILE)
    for gpu in gpus if profile.runtime else ():
        try:
            served.add(plan_for(manifest.engines, profile.runtime, gpu.compute_capability).file)
        except EngineError:
            continue  # check_engine says so
    return set(manifest.files) - engines | served & set(manifest.files)
