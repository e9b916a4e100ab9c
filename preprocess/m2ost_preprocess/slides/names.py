"""Slide names from requests, resolved under the server's named roots; and the content fingerprint of a slide."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from m2ost_contract import ENV_SLIDE_ROOTS, MAX_SHOWN_NAME

from ..errors import SlideError, SlideNotFound
from ..readers import primary_file
from ..readers.companions import opened_files
from ..readers.dicom_series import series_of

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
        """The roots that the server was started with; none where the variable is unset.

        Raises
        ------
        ValueError
            If the variable is not JSON or names no usable root.
        """
        raw = json.loads(os.environ.get(ENV_SLIDE_ROOTS, "{}"))
        return cls({name: Path(folder) for name, folder in raw.items()})

    def to_environment(self) -> dict[str, str]:
        """The environment variable that hands the roots to a server: its name → its value."""
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

    @property
    def place(self) -> Path:
        """Where it should lie; nobody has looked."""
        return Path(self.folder) / self.relative

    def resolve(self) -> Path:
        """The slide's file. Waits as long as the root's file system does.

        Returns
        -------
        Path
            Absolute, without symbolic links.

        Raises
        ------
        SlideNotFound
            If the file is missing, or a file leads out of the root, be it one that the slide's reader would open beside
            it.
        UnreadableSlide
            If such a file is a pipe, socket or device, or which files these are cannot be told.
        """
        # In bytes, and with the slash: neither another encoding nor a folder whose name begins alike passes.
        inside = _as_bytes(self.folder).rstrip(b"/") + b"/"
        try:
            path = os.path.realpath(inside + self.relative.encode(), strict=True)
            if not path.startswith(inside):
                raise SlideNotFound(self.shown, "leads out of its slide root")
            slide = _for_this_interpreter(Path(_as_text(path)))
            _check_inside(slide, inside)
            primary_file(slide)
        except SlideError as error:
            raise type(error)(self.shown, error.message) from error
        except (OSError, ValueError) as error:
            raise SlideNotFound(self.shown, "no such slide on the server") from error
        return Path(_as_text(path))


def _check_inside(slide: Path, inside: bytes) -> None:
    """Raise where a slide's reader would open a file that is not inside a folder."""
    folders: dict[Path, bytes] = {slide.parent: os.fsencode(slide.parent)}
    for file in opened_files(slide):
        if file.parent not in folders:
            folders[file.parent] = os.path.realpath(os.fsencode(file.parent))
        real = os.path.join(folders[file.parent], os.fsencode(file.name))
        # The folder is resolved once, for all of its files; of these only a link can lead elsewhere.
        if os.path.islink(real):
            real = os.path.realpath(real)
        if not real.startswith(inside):
            raise SlideNotFound(
                slide.name, f"leads out of its slide root by {file.name!r}, which its reader would open; remove it"
            )


def _as_bytes(path: str) -> bytes:
    """A path as the file system has it. Inside Triton's stub Python takes file names for ASCII, so it is not asked."""
    return path.encode("utf-8", "surrogateescape")


def _as_text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _for_this_interpreter(path: Path) -> Path:
    """A path in the spelling that this interpreter finds it by, which inside Triton's stub is not its own text."""
    return Path(os.fsdecode(_as_bytes(str(path))))


def fingerprint(path: Path) -> str:
    """Identity of a slide's content, 64 hexadecimal digits, without reading all of it.

    For every file of the slide, sha256 over its size and 16 blocks of 64 KiB spread over it from the first to the last;
    then sha256 over these, sorted: names do not matter.

    Parameters
    ----------
    path : Path
        The slide's file, or its folder of DICOM instances.

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
    """The files that make a slide: all that its readers take anything from.

    Parameters
    ----------
    path : Path
        The slide's file, or its folder of DICOM instances.

    Returns
    -------
    list of Path
        The file, and those of the others that a reader opens which exist; of a DICOM folder, sorted, those that are of
        the same series or do not say of which.

    Raises
    ------
    SlideNotFound
        If there is no such slide, or it names a file that does not lie beside it.
    UnreadableSlide
        If one of them is a pipe, socket or device, or which they are cannot be told.
    OSError
        If the slide or its folder cannot be read.
    """
    first = primary_file(path)
    files = [file for file in opened_files(first) if file.is_file()]
    series = series_of(first)
    if series is None:
        return files
    return sorted(f for f in files if f == first or f.parent != first.parent or series_of(f) in (series, b""))
