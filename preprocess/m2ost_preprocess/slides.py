"""Slide names from requests, resolved under the server's named roots; and the content fingerprint of a slide."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .contract import ENV_SLIDE_ROOTS, MAX_SHOWN_NAME
from .errors import SlideNotFound
from .readers import primary_file
from .readers.dicom_series import series_files

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
        real = {}
        for name, folder in self.roots.items():
            if not name or "/" in name or name in (".", ".."):
                raise ValueError(f"slide root name {name!r} must be a plain word")
            path = os.path.realpath(_as_bytes(str(folder)))
            if not os.path.isdir(path):
                raise ValueError(f"slide root {name}={folder}: no such folder")
            real[name] = Path(_as_text(path))
        object.__setattr__(self, "roots", real)

    @classmethod
    def from_environment(cls) -> SlideRoots:
        """The roots that the server was started with.

        Returns
        -------
        SlideRoots
            Empty where the variable is unset.

        Raises
        ------
        ValueError
            If the variable is not JSON or names no usable root.
        """
        raw = json.loads(os.environ.get(ENV_SLIDE_ROOTS, "{}"))
        return cls({name: Path(folder) for name, folder in raw.items()})

    def to_environment(self) -> dict[str, str]:
        """The environment variable that hands the roots to a server.

        Returns
        -------
        dict of str to str
            Name → value.
        """
        return {ENV_SLIDE_ROOTS: json.dumps({name: str(folder) for name, folder in self.roots.items()})}

    def locate(self, name: str) -> RootedSlide:
        """The slide of a name that came from a request, before any file system has been asked for it.

        Parameters
        ----------
        name : str
            ``root/relative/path``: no ``..``, no empty or ``.`` part, not absolute, not over 1,024 bytes.

        Returns
        -------
        RootedSlide
            Its name is hostile until :meth:`RootedSlide.resolve` has found its files under the root.

        Raises
        ------
        SlideNotFound
            If the name is malformed, or the root unknown.
        """
        shown = name if len(name) <= MAX_SHOWN_NAME else name[:MAX_SHOWN_NAME] + "…"
        parts = name.split("/")
        if (
            len(name.encode(errors="replace")) > MAX_NAME_BYTES
            or len(parts) < 2
            or any(part in ("", ".", "..") or "\0" in part for part in parts)
        ):
            raise SlideNotFound(shown, "not a slide name; write root/relative/path, without '..'")
        root = self.roots.get(parts[0])
        if root is None:
            known = ", ".join(sorted(self.roots)) or "none: start the server with --slides"
            raise SlideNotFound(shown, f"unknown slide root {parts[0]!r}; this server has: {known}")
        return RootedSlide(shown, parts[0], str(root), "/".join(parts[1:]))

    def resolve(self, name: str) -> Path:
        """The file of a slide name that came from a request; see :meth:`locate` and :meth:`RootedSlide.resolve`."""
        return self.locate(name).resolve()


@dataclass(frozen=True)
class RootedSlide:
    """A slide of a request, whose files are looked for under a root when it is read.

    Parameters
    ----------
    shown : str
        The name as the request has it, cut where it is long.
    root : str
        Name of the root.
    folder : str
        The root itself, without symbolic links.
    relative : str
        Path under it.
    """

    shown: str
    root: str
    folder: str
    relative: str

    @property
    def name(self) -> str:
        """What it is called in messages and logs."""
        return self.relative.rpartition("/")[2]

    def resolve(self) -> Path:
        """The slide's file. Waits as long as the root's file system does.

        Returns
        -------
        Path
            Absolute, without symbolic links.

        Raises
        ------
        SlideNotFound
            If the file is missing, or a symbolic link leads out of the root, be it that of another file of the slide.
        """
        inside = _as_bytes(self.folder).rstrip(b"/") + b"/"
        try:
            path = os.path.realpath(inside + self.relative.encode(), strict=True)
            # A slide may be several files: none of them may lead out either.
            files = slide_files(_for_this_interpreter(Path(_as_text(path)))) if path.startswith(inside) else []
            real = [os.path.realpath(os.fsencode(file), strict=True) for file in files]
        except SlideNotFound as error:
            raise SlideNotFound(self.shown, error.message) from error
        except (OSError, ValueError) as error:
            raise SlideNotFound(self.shown, "no such slide on the server") from error
        if not all(file.startswith(inside) for file in (path, *real)):
            raise SlideNotFound(self.shown, "leads out of its slide root")
        return Path(_as_text(path))


def _as_bytes(path: str) -> bytes:
    """A path as the file system has it. Inside Triton's stub Python takes file names for ASCII, so it is not asked."""
    return path.encode("utf-8", "surrogateescape")


def _as_text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _for_this_interpreter(path: Path) -> Path:
    """A path in the spelling that this interpreter finds it by, which inside Triton's stub is not its own text."""
    return Path(os.fsdecode(_as_bytes(str(path))))


def fingerprint(path: Path) -> str:
    """Identity of a slide's content, without reading all of it.

    For every file of the slide, sha256 over its size and 16 blocks of 64 KiB spread over it from the first to the last;
    then sha256 over these, sorted: names do not matter.

    Parameters
    ----------
    path : Path
        The slide's file, or its folder of DICOM instances.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    SlideNotFound
        If there is no such slide.
    OSError
        If one of its files cannot be read.
    """
    digests = []
    for file in slide_files(_for_this_interpreter(path)):
        size = file.stat().st_size
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            for i in range(16):
                stream.seek(max(0, size - _BLOCK) * i // 15)
                digest.update(stream.read(_BLOCK))
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def slide_files(path: Path) -> list[Path]:
    """The files that make a slide.

    Parameters
    ----------
    path : Path
        The slide's file, or its folder of DICOM instances.

    Returns
    -------
    list of Path
        For DICOM every file of its folder, under whatever name, that is of the same series or does not say of which;
        for MRXS the file and those of its companion folder; else the file alone.

    Raises
    ------
    SlideNotFound
        If there is no such slide.
    OSError
        If its folder cannot be listed.
    """
    first = primary_file(path)
    if first.suffix.lower() == ".mrxs" and (companion := first.with_suffix("")).is_dir():
        return [first, *sorted(file for file in companion.iterdir() if file.is_file())]
    return series_files(first)
