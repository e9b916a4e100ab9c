"""Home folders: ``~`` in a path that a person wrote, and where caches lie."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import PreprocessError


class NoHomeFolder(PreprocessError):
    """This machine does not know the home folder that is needed."""


def expanded(location: str) -> Path:
    """A path whose first part may be ``~`` or ``~user``.

    Raises
    ------
    NoHomeFolder
        If there is no such home folder.
    """
    try:
        return Path(location).expanduser()
    except RuntimeError as error:
        home = location.partition("/")[0]
        raise NoHomeFolder(
            f"{location}: this machine knows no home folder {home}; write the folder in full, or ./{location} for a "
            "file of that name"
        ) from error


def user_cache() -> Path:
    """The user's folder for what can be made again.

    Raises
    ------
    NoHomeFolder
        If the user has no home folder, and XDG_CACHE_HOME names none.
    """
    told = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(told) if told else Path.home() / ".cache"
    except RuntimeError as error:
        raise NoHomeFolder("this user has no home folder; set XDG_CACHE_HOME to a folder for caches") from error
