"""Whether a release's files are those that its manifest describes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .contract import Manifest, ManifestError, sha256_file


class ReleaseError(ManifestError):
    """A file of a release is missing, truncated or swapped; the message names it."""


def changed_files(release: Path, manifest: Manifest, names: Iterable[str] | None = None) -> list[str]:
    """Every file of a release that is missing or not what it was when the manifest was written.

    Parameters
    ----------
    release : Path
        The folder.
    manifest : Manifest
        Its manifest.
    names : iterable of str, optional
        Which of the manifest's files to look at; by default all.

    Returns
    -------
    list of str
        One line a file: its path below the release, and what is wrong.
    """
    problems = []
    for name in sorted(manifest.files if names is None else names):
        expected = manifest.files[name]
        try:
            found = sha256_file(release / name)
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
            continue
        if found != expected:
            problems.append(f"{name}: truncated, changed or swapped: sha256 is {found}, the manifest says {expected}")
    return problems


def check_files(release: Path, manifest: Manifest) -> None:
    """Refuse a release with a file that is missing, truncated or swapped.

    Raises
    ------
    ReleaseError
        Names every such file.
    """
    problems = changed_files(release, manifest)
    if problems:
        raise ReleaseError(f"{release}: {'; '.join(problems)}; a release never changes: copy or export it anew")
