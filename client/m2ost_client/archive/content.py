"""What a file is to an archive, by its first bytes: a cheap look, for a reader tells later whether it can open it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

SLIDE_SUFFIXES = frozenset(
    ("svs", "tif", "tiff", "btf", "tf2", "tf8", "qptiff", "ndpi", "mrxs", "scn", "bif", "vms", "vmu", "svslide", "czi")
) | {"dcm", "jpg", "jpeg", "png"}
"""Endings that say that a file is meant as a slide: what cannot be read under one of them is a slide that fails."""

DICOM_SUFFIX = "dcm"
FOLDER_SUFFIX = "mrxs"
INDEX_SUFFIXES = frozenset(("vms", "vmu"))
SEVERAL_FILES = frozenset((DICOM_SUFFIX, FOLDER_SUFFIX)) | INDEX_SUFFIXES
"""Endings of slides that may be more files than the one that is named."""

HEAD_BYTES = 132
"""How much of a file's beginning tells what it is."""

_MAGIC = (
    b"II*\0",
    b"MM\0*",
    b"II+\0",  # BigTIFF
    b"MM\0+",
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"ZISRAWFILE",  # Zeiss CZI
)
_INDEX_BYTES = 1 << 20
_ID_ENDING_CHARACTERS = 10


def suffix_of(path: str) -> str:
    """A file's ending in lower case, without its dot."""
    return PurePosixPath(path).suffix.lower().lstrip(".")


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is DICOM."""
    return head[128:132] == b"DICM"


def is_slide(head: bytes) -> bool:
    """Whether a file that begins so is of a kind that readers open: TIFF of any vendor, JPEG, PNG, CZI or DICOM."""
    return head.startswith(_MAGIC) or is_dicom(head)


def read_head(path: Path) -> bytes:
    """The beginning of a file.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with path.open("rb") as stream:
        return stream.read(HEAD_BYTES)


def companions(files: Iterable[Path]) -> set[Path]:
    """Files and folders that are parts of slides among ``files``: MRXS has a folder, VMS and VMU list their images.

    Parameters
    ----------
    files : iterable of Path
        Files of one folder.
    """
    found: set[Path] = set()
    for file in files:
        suffix = suffix_of(file.name)
        if suffix == FOLDER_SUFFIX:
            found.add(file.with_suffix(""))
        elif suffix in INDEX_SUFFIXES and file.is_file():
            try:
                with file.open("rb") as stream:
                    lines = stream.read(_INDEX_BYTES).decode("utf-8", "replace").splitlines()
            except OSError:
                continue  # the slide itself will be an error
            values = (line.partition("=")[2].strip() for line in lines)
            found.update(file.with_name(value) for value in values if value and "/" not in value and "\0" not in value)
    return found


def without_ending(name: str) -> str:
    """A file's name without its ending; what follows a dot in ``1.2.840`` or in a long name is none."""
    stem, dot, ending = name.rpartition(".")
    is_ending = dot and stem and len(ending) <= _ID_ENDING_CHARACTERS and ending[:1].isalpha() and ending.isalnum()
    return stem if is_ending else name
