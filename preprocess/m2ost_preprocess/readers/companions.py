"""Which other files a slide leads its readers to: looked at before a native library opens any of them.

Of the formats that OpenSlide 4.0 knows, these open more than the slide's own file; the other readers open that alone.

==================================  ===================================================================================
format                              what OpenSlide opens beside the file
==================================  ===================================================================================
MRXS                                ``Slidedat.ini`` in the folder of the slide's name, and the files named in it
Hamamatsu VMS, VMU                  the images, the map, the macro and the optimisation file that the file names
DICOM                               every file of the folder, to see of which series it is
Trestle                             the file with ``.Full`` in place of the suffix
Sakura, and all that is no TIFF     what SQLite keeps beside a database: ``-journal``, ``-wal``, ``-shm``
==================================  ===================================================================================
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import SlideNotFound, UnreadableSlide

TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF."""

KNOWN_VENDORS = frozenset(
    (
        *("aperio", "argos", "dicom", "generic-tiff", "hamamatsu", "huron", "leica"),
        *("mirax", "philips", "sakura", "trestle", "ventana", "zeiss"),
    )
)
"""OpenSlide's names of the formats of which it is known which files it opens."""

MAX_FOLDER_FILES = 1 << 16
"""Most files in a folder of which OpenSlide opens each."""

_VMS_MAX_BYTES, _SLIDEDAT_MAX_BYTES = 64 << 10, 1 << 20  # OpenSlide opens no larger ones
_DICOM_MARK = slice(128, 132)
_SQLITE_ENDINGS = ("-journal", "-wal", "-shm")
_MRXS = ".mrxs"
_VMS_GROUP = b"Virtual Microscope Specimen]"
# Wherever they stand: GLib's own reader skips blanks and OpenSlide mends lines before it. What is found too much is
# only looked at.
_NAMED_BY_VMS = re.compile(rb"(?:ImageFile[^=\n]*|MapFile|MacroImage|OptimisationFile)[ \t\f\r]*=[ \t\f\r]*([^\n]*)")
_NAMED_BY_SLIDEDAT = re.compile(rb"(?:INDEXFILE|FILE_[0-9]+)[ \t\f\r]*=[ \t\f\r]*([^\n]*)")
_NOT_IN_A_NAME = re.compile(rb"[\x00-\x1f/\\]")


def opened_files(path: Path) -> Iterator[Path]:
    """The files that a reader opens, or looks for, to read a slide: a file, or a folder of DICOM instances.

    First the slide's own, then those that exist of the others, folders among them. Each is yielded before anything is
    read of it, so that whoever asks can stop in time.

    Raises ``SlideNotFound`` where there is no such slide, or it names a file that does not lie beside it;
    ``UnreadableSlide`` where one is neither a file nor a folder, or names others in a way that cannot be followed; and
    ``OSError`` where the slide or its folder cannot be read.
    """
    yield path
    if path.is_dir():
        yield from _entries(path, path.name)
        return
    if not path.is_file():
        raise SlideNotFound(path.name, "no such file")
    if path.name.lower().endswith(_MRXS):
        yield from _of_mirax(path, Path(str(path)[: -len(_MRXS)]))
    with path.open("rb") as stream:
        # Enough for DICOM's mark; of a file small enough to be Hamamatsu's list, all of it.
        head = stream.read(_DICOM_MARK.stop)
        if os.fstat(stream.fileno()).st_size <= _VMS_MAX_BYTES:
            head += stream.read(_VMS_MAX_BYTES)
    if head[_DICOM_MARK] == b"DICM":
        yield from (file for file in _entries(path.parent, path.name) if file.name != path.name)
    if head[:4] in TIFF_MAGICS:
        beside = [Path(f"{str(path).rpartition('.')[0] or path}.Full")]  # the last point, be it a folder's
    else:
        beside = [Path(f"{path}{ending}") for ending in _SQLITE_ENDINGS]
    if _VMS_GROUP in head:
        beside += [path.parent / name for name in _names(_NAMED_BY_VMS, head, path.name)]
    for file in filter(os.path.lexists, beside):
        _check_kind(file, path.name)
        yield file


def _of_mirax(path: Path, folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    yield folder
    yield from _entries(folder, path.name)
    slidedat = folder / "Slidedat.ini"
    if not slidedat.is_file():
        return
    with slidedat.open("rb") as stream:
        text = stream.read(_SLIDEDAT_MAX_BYTES + 1)
    if len(text) > _SLIDEDAT_MAX_BYTES:
        raise UnreadableSlide(path.name, f"its Slidedat.ini is larger than {_SLIDEDAT_MAX_BYTES >> 20} MiB; damaged")
    _names(_NAMED_BY_SLIDEDAT, text, path.name)  # all of them are entries of the folder


def _entries(folder: Path, slide: str) -> list[Path]:
    """What lies in a folder of which OpenSlide opens each file, sorted."""
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry, _ in zip(entries, range(MAX_FOLDER_FILES + 1), strict=False)]
    if len(found) > MAX_FOLDER_FILES:
        raise UnreadableSlide(slide, f"more than {MAX_FOLDER_FILES} files beside it; give each slide its own folder")
    for file in found:
        _check_kind(file, slide)
    return sorted(found)


def _check_kind(file: Path, slide: str) -> None:
    """Refuse what blocks whoever opens it, or is no part of a file system."""
    try:
        mode = file.stat().st_mode
    except OSError:  # a link to nothing; nobody can open it
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UnreadableSlide(
            slide, f"{file.name!r} beside it is a pipe, socket or device, which its reader would open; remove it"
        )


def _names(pattern: re.Pattern[bytes], text: bytes, slide: str) -> list[str]:
    """The names that a list of files gives, each of a file beside it."""
    names = []
    for value in pattern.findall(text.replace(b"\r\n", b"\n")):
        if value in (b".", b"..") or _NOT_IN_A_NAME.search(value):
            shown = value[:100].decode(errors="replace")
            raise SlideNotFound(
                slide, f"leads out of its slide root: it names {shown!r}, and may only name files that lie beside it"
            )
        if value:
            names.append(os.fsdecode(value))
    return names
