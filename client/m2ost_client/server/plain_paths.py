"""Paths that Triton's Python backend can be given.

It starts every model's process by a command that it hands to a shell, and quotes neither the model's folder nor its
own: a space there ends a word, and ``$`` or ``;`` do what they do in a shell. The Python in that process is isolated
from the environment and takes the names of files for ASCII, so that it finds no folder called ``müller``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import tempfile
from pathlib import Path

from ..errors import ServerStartError
from .host import SHM


def is_plain(path: Path) -> bool:
    """Whether a shell takes a path as it is: Latin letters, digits, and a few signs."""
    return shlex.quote(str(path)) == str(path)


def plain_path(path: Path, runtime: Path) -> Path:
    """A path to the same folder that is plain: its own, else that of a link to it in ``runtime``.

    Parameters
    ----------
    path : Path
        An absolute path.
    runtime : Path
        A plain path; made if it is not there.
    """
    if is_plain(path):
        return path
    # Named after what it leads to, as several commands that were printed may share a folder.
    link = runtime / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    runtime.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    return link


def temporary_parent() -> Path:
    """The folder for what is laid out for a server: that for temporary files, or another that is plain.

    Raises
    ------
    ServerStartError
        If there is none that is plain and that this user can write to.
    """
    folders = [Path("/tmp"), Path("/var/tmp"), SHM]
    with contextlib.suppress(FileNotFoundError):
        folders.insert(0, Path(tempfile.gettempdir()))
    for folder in folders:
        if is_plain(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    tried = ", ".join(map(str, dict.fromkeys(folders)))
    raise ServerStartError(
        f"no folder for temporary files that can be written to and whose path is plain (letters, digits, no space): "
        f"tried {tried}; set TMPDIR to one"
    )
