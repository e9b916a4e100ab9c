"""Which DICOM files belong together.

The files of one slide share a SeriesInstanceUID, whatever they are called. Those that hold the slide itself say VOLUME;
labels and overviews lie beside them.
"""

from __future__ import annotations

import stat
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

_PREAMBLE_BYTES = 132


def series_uid(path: Path) -> bytes | None:
    """SeriesInstanceUID of a DICOM file, which the files of one slide share.

    Parameters
    ----------
    path : Path
        A regular file.

    Returns
    -------
    bytes or None
        None where it is not a DICOM file; empty where its header cannot be followed.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    header = _header(path, ["SeriesInstanceUID"])
    return None if header is None else str(header.get("SeriesInstanceUID", "")).encode()


def is_volume(path: Path) -> bool:
    """Whether a regular file is DICOM and holds pixels of the slide itself, not its label or an overview."""
    header = _header(path, ["ImageType"])
    return header is not None and "VOLUME" in header.get("ImageType", [])


def series_files(path: Path) -> list[Path]:
    """The files of the slide that ``path`` is one of; ``OSError`` where its folder cannot be listed.

    For DICOM every file of the folder, under whatever name, that is of the same series or does not say of which,
    sorted; else the file alone.
    """
    series = series_of(path)
    if series is None:
        return [path]
    return sorted(file for file in path.parent.iterdir() if file == path or series_of(file) in (series, b""))


def slides_of_folder(folder: Path) -> list[Path]:
    """The DICOM slides of a folder, each by one of its files; ``OSError`` where it cannot be listed.

    Of every series the first file, by name, that says VOLUME, or the first of all where none does. Series without a
    volume are left out where another has one; so are files that do not say of which series they are.
    """
    series: dict[bytes, Path] = {}
    volumes: dict[bytes, Path] = {}
    for file in sorted(folder.iterdir()):
        uid = series_of(file)
        if uid is not None:
            series.setdefault(uid, file)
            if uid not in volumes and is_volume(file):
                volumes[uid] = file
    found = volumes or series
    return [file for uid, file in found.items() if uid] or list(found.values())


def series_of(file: Path) -> bytes | None:
    """The DICOM series of any path, as :func:`series_uid` says; None also for no regular file, or an unreadable one."""
    try:
        now = file.stat()
        return _read_series(file, now.st_mtime_ns, now.st_size) if stat.S_ISREG(now.st_mode) else None
    except (OSError, _NotDicom):
        return None


class _NotDicom(Exception):
    """Of the many slides of an archive, which no cache should remember."""


@lru_cache(maxsize=1 << 14)
def _read_series(file: Path, mtime_ns: int, size_bytes: int) -> bytes:
    """The DICOM series of a file as it stood then: only a file that changes is read anew."""
    series = series_uid(file)
    if series is None:
        raise _NotDicom
    return series


def _header(path: Path, tags: list[str]) -> Dataset | None:
    """Some tags of a DICOM file; empty where it cannot be followed, None where it is none."""
    with path.open("rb") as file:
        if file.read(_PREAMBLE_BYTES)[128:] != b"DICM":
            return None
    import pydicom
    from pydicom.filereader import read_file_meta_info

    try:
        if read_file_meta_info(path).get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
            return pydicom.Dataset()  # OpenSlide reads none, and pydicom would inflate all of it, however much that is
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
    except (OSError, MemoryError):
        raise
    except Exception:  # pydicom passes on whatever a damaged header leads to
        return pydicom.Dataset()
