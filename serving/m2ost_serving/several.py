"""Several releases on one server: each under its name, and those with the same views behind one tiler."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from m2ost_contract import (
    MODEL_ENGINE,
    MODEL_INFO,
    MODEL_SEQUENCE,
    MODEL_TILER,
    SERVED_PARAMETER,
    ModelNames,
    Release,
    ServedNameError,
    ViewGeometry,
    check_distinct,
    complete_folder,
)

from .backlog import ENGINES_PARAMETER, GUARDS_PARAMETER
from .repository import models_sha256, write_again
from .triton import RELEASE_LINK, RELEASES_PARAMETER


def named(releases: Sequence[Release]) -> list[Release]:
    """Releases with the names of their models on one server of all, by the names that they have from their export.

    Parameters
    ----------
    releases : sequence of Release

    Raises
    ------
    ServedNameError
        If two have one name, or would have a model of one name.
    """
    names = [release.manifest.served_name for release in releases]
    try:
        check_distinct(names)
    except ServedNameError as error:
        where = ", ".join(f"{name} in {release.folder}" for name, release in zip(names, releases, strict=True))
        raise ServedNameError(f"{error} ({where})") from error
    tilers: dict[ViewGeometry, str] = {}
    for release in releases:
        number = len(tilers) + 1
        tilers.setdefault(release.engine.views, MODEL_TILER if number == 1 else f"{MODEL_TILER}_{number}")
    served = []
    for name, release in zip(names, releases, strict=True):
        engine = replace(release.engine, names=ModelNames(name, tilers[release.engine.views], f"{name}_guard"))
        served.append(replace(release, manifest=replace(release.manifest, engine=engine)))
    return served


def lay_out(releases: Sequence[Release], parent: Path) -> Path:
    """The models of several releases as one repository; the engines' files are links to theirs.

    Parameters
    ----------
    releases : sequence of Release
        As :func:`named` gives them.
    parent : Path
        Where the folder is made, once for the same releases and this version of the package.

    Returns
    -------
    Path
    """
    what = "".join(
        f"{release.manifest.served_name}\0{release.folder.resolve()}\0{models_sha256(release.engine)}\0"
        for release in releases
    )
    folder = parent / f"releases-{hashlib.sha256(what.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"
    if folder.exists():
        return folder
    served = json.dumps({release.manifest.served_name: release.engine.names.engine for release in releases})
    with complete_folder(folder) as scratch:
        for release in releases:
            names = release.engine.names
            of_tiler = [other.engine for other in releases if other.engine.names.tiler == names.tiler]
            shared = {
                RELEASES_PARAMETER: [info.release_sha256 for info in of_tiler],
                ENGINES_PARAMETER: [info.names.engine for info in of_tiler],
                GUARDS_PARAMETER: [info.names.guard for info in of_tiler],
            }
            parameters = {
                MODEL_TILER: {key: json.dumps(values) for key, values in shared.items()},
                MODEL_INFO: {SERVED_PARAMETER: served},
            }
            write_again(scratch, release, parameters)
            _link(release, scratch)
    return folder


def _link(release: Release, repository: Path) -> None:
    """Link what the engine and the stage for slides read, and for those in the Python backend the release itself."""
    for template in (MODEL_ENGINE, MODEL_SEQUENCE):
        version = repository / release.engine.names.of(template) / "1"
        if not version.is_dir():
            continue
        (version / RELEASE_LINK).symlink_to(release.folder.resolve())
        for file in release.manifest.files:
            path = Path(file)
            if path.parts[:2] == (template, "1") and path.suffix not in (".py", ".pbtxt"):
                (version / path.name).symlink_to((release.folder / file).resolve())
