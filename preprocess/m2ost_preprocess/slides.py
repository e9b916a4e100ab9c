"""Slide names from requests, resolved under the server's named roots; and the content fingerprint of a slide."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .contract import ENV_SLIDE_ROOTS
from .errors import SlideNotFound
from .readers import primary_file

MAX_NAME_BYTES = 1024
_BLOCK = 1 << 16


@dataclass(frozen=True)
class SlideRoots:
    """The folders that a server may read slides from, each under a name.

    Parameters
    ----------
    roots : mapping of str to Path
        Name → existing folder. A request names a slide as ``name/relative/path``.

    Raises
    ------
    ValueError
        If a name is empty or holds a slash, or a folder does not exist.
    """

    roots: Mapping[str, Path]

    def __post_init__(self) -> None:
        for name, folder in self.roots.items():
            if not name or "/" in name or name in (".", ".."):
                raise ValueError(f"slide root name {name!r} must be a plain word")
            if not folder.is_dir():
                raise ValueError(f"slide root {name}={folder}: no such folder")
        object.__setattr__(self, "roots", {k: v.resolve() for k, v in self.roots.items()})

    @classmethod
    def from_environment(cls) -> SlideRoots:
        """The roots that the server was started with; none where the variable is unset."""
        raw = json.loads(os.environ.get(ENV_SLIDE_ROOTS, "{}"))
        return cls({name: Path(folder) for name, folder in raw.items()})

    def to_environment(self) -> dict[str, str]:
        """The environment variable that hands the roots to a server."""
        return {ENV_SLIDE_ROOTS: json.dumps({name: str(folder) for name, folder in self.roots.items()})}

    def resolve(self, name: str) -> Path:
        """The file of a slide name that came from a request, and is hostile until it has passed here.

        Parameters
        ----------
        name : str
            ``root/relative/path``: no ``..``, no empty or ``.`` part, not absolute, not over 1,024 bytes.

        Raises
        ------
        SlideNotFound
            If the name is malformed, the root unknown, the file missing, or a symbolic link leads out of the root.
        """
        shown = name if len(name) <= 200 else name[:200] + "…"
        parts = name.split("/")
        if (
            len(os.fsencode(name)) > MAX_NAME_BYTES
            or len(parts) < 2
            or any(part in ("", ".", "..") or "\0" in part for part in parts)
        ):
            raise SlideNotFound(shown, "not a slide name; write root/relative/path, without '..'")
        root = self.roots.get(parts[0])
        if root is None:
            known = ", ".join(sorted(self.roots)) or "none: start the server with --slides"
            raise SlideNotFound(shown, f"unknown slide root {parts[0]!r}; this server has: {known}")
        try:
            path = root.joinpath(*parts[1:]).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise SlideNotFound(shown, "no such slide on the server") from error
        if not path.is_relative_to(root):
            raise SlideNotFound(shown, "leads out of its slide root")
        if not (path.is_file() or path.is_dir()):
            raise SlideNotFound(shown, "is not a regular file")
        return path


def fingerprint(path: Path) -> str:
    """Identity of a slide's content, without reading all of it.

    sha256 over name-independent facts of every file of the slide: its size, its first and last 64 KiB, and 14 blocks
    of 64 KiB spread between them.

    Parameters
    ----------
    path : Path
        The slide's file, or its folder of DICOM instances.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    first = primary_file(path)
    files = sorted(first.parent.glob("*.dcm")) if first.suffix.lower() == ".dcm" else [first]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            for i in range(16):
                stream.seek(max(0, size - _BLOCK) * i // 15)
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()
