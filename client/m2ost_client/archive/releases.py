"""A release out of object storage, as a cluster brings it to the machine that serves."""

from __future__ import annotations

from pathlib import Path

from m2ost_contract import Manifest, Release, ReleaseError, complete_folder, sha256_file, version_folders

from .patience import PATIENCE, Patience
from .storage import download


def fetch_release(url: str, destination: Path, sha256: str, *, patience: Patience = PATIENCE) -> Release:
    """Copy a release; under its final name it is whole, and the one that was asked for.

    Parameters
    ----------
    url : str
        The release's folder, where fsspec reaches it.
    destination : Path
        The folder to create. If it is that release already, nothing is copied.
    sha256 : str
        Of the release's ``manifest.json``, which has the sha256 of every other file.
    patience : Patience
        With the storage.

    Returns
    -------
    Release

    Raises
    ------
    ReleaseError
        If it is another release, or a file is not what its manifest says.
    ManifestError
        If its manifest is damaged.
    StorageError
        If a file cannot be fetched, or becomes another meanwhile.
    FileExistsError
        If ``destination`` is no release.
    """
    manifest = destination / Manifest.FILENAME
    if manifest.is_file():
        _check_manifest(manifest, str(destination), sha256)
    else:
        with complete_folder(destination) as scratch:
            manifest = scratch / Manifest.FILENAME
            download(f"{url.rstrip('/')}/{manifest.name}", manifest, patience=patience)
            _check_manifest(manifest, url, sha256)
            for name in Release.open(scratch).manifest.files:
                if not (scratch / name).resolve().is_relative_to(scratch.resolve()):
                    raise ReleaseError(f"{url}: its manifest names {name!r}, a file outside of it; nothing was copied")
                download(f"{url.rstrip('/')}/{name}", scratch / name, patience=patience)
            for version in version_folders(Release.open(scratch).manifest.files):
                (scratch / version).mkdir(exist_ok=True)  # storages have no empty folders
            Release.open(scratch).check()
    release = Release.open(destination)
    release.check()
    return release


def _check_manifest(manifest: Path, where: str, sha256: str) -> None:
    found = sha256_file(manifest)
    if found != sha256.lower():
        raise ReleaseError(
            f"{where}: the sha256 of its {manifest.name} is {found}, not {sha256!r}; give the address of the release "
            "that is meant, or its sha256"
        )
