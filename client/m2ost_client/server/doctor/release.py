"""Whether the files of a release are those that were exported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from m2ost_contract import GRAPHS, EngineError, Manifest, changed_files, graphs_of, plan_for

from .facts import Gpu, Profile
from .findings import Finding, error, ok, warning


def check_files(folder: Path, files: Mapping[str, str]) -> list[Finding]:
    """Compare the sha256 of files with what a manifest says.

    Parameters
    ----------
    folder : Path
        A release, or another model repository with a manifest.
    files : mapping of str to str
        Path below the folder → sha256.

    Returns
    -------
    list of Finding
        An error for every file that is missing, truncated or swapped; one that all is well where none is.
    """
    changed = changed_files(folder, files)
    if changed:
        return [error("files", f"{folder}/{words}", "copy the folder again, or export it anew") for words in changed]
    size = sum((folder / name).stat().st_size for name in files)
    return [ok("files", f"{len(files)} files, {size / 1e6:.1f} MB, sha256 as in the manifest")]


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


def files_served(manifest: Manifest, profile: Profile, gpus: Iterable[Gpu]) -> dict[str, str]:
    """The files that are read under a profile, with their sha256: all but graphs and plans that it does not serve."""
    engines = {*GRAPHS, *(engine.file for engine in manifest.engines)}
    served: set[str] = set()
    if not profile.runtime:
        served.update(graphs_of(profile.engine))
    for gpu in gpus if profile.runtime else ():
        try:
            served.add(plan_for(manifest.engines, profile.runtime, gpu.compute_capability).file)
        except EngineError:
            continue  # check_engine says so
    return {name: digest for name, digest in manifest.files.items() if name in served or name not in engines}
