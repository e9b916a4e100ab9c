"""Slides elsewhere: whatever fsspec reads."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError
from .content import DICOM_SUFFIX, HEAD_BYTES, SEVERAL_FILES, SLIDE_SUFFIXES, is_slide, suffix_of, without_ending
from .scan import FOLDER_WITHOUT_SLIDES, NOT_A_SLIDE, Found, LeftOut

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*(::|://)")
_BLOCK_BYTES = 4 << 20
_VERSION_FACTS = (
    "ETag", "etag", "md5Hash", "Content-MD5", "Digest", "checksum", "mtime", "LastModified", "last_modified", "updated",
    "created",
)  # fmt: skip

SLIDE_OF_SEVERAL_FILES = "part of a slide of several files, and one file alone is fetched; copy its folder here"

SIZE_ONLY = "size-"
"""How a version begins that may be the same though the file is another."""


class StorageError(InputError):
    """A slide cannot be fetched from where it lies."""


def is_url(location: str) -> bool:
    """Whether a location is fsspec's (``s3://bucket/a.svs``) and not a path."""
    return _URL.match(location) is not None


def sort_out_urls(pattern: str) -> Found:
    """The slides among the URLs that a pattern matches.

    Raises
    ------
    InputError
        If none matches, or the storage cannot be reached.
    """
    filesystem, path = _filesystem(pattern)
    protocol = pattern.partition("://")[0]
    try:
        matches = dict(filesystem.glob(path, detail=True))
    except Exception as error:  # every backend has its own kinds
        raise InputError(f"{pattern}: cannot be listed: {error}") from error
    if not matches:
        raise InputError(f"{pattern}: nothing matches it")
    found = Found()
    folders = [match for match, facts in matches.items() if facts.get("type") == "directory"]
    dicom = Counter(match.rpartition("/")[0] for match in matches if suffix_of(match) == DICOM_SUFFIX)
    for match in sorted(matches):
        url = match if is_url(match) else f"{protocol}://{match}"
        suffix = suffix_of(match)
        if match in folders:
            if not any(other.startswith(f"{match.rstrip('/')}/") for other in matches):
                found.left_out.append(LeftOut(url, FOLDER_WITHOUT_SLIDES, problem=True))
        elif suffix in SEVERAL_FILES and (suffix != DICOM_SUFFIX or dicom[match.rpartition("/")[0]] > 1):
            found.left_out.append(LeftOut(url, SLIDE_OF_SEVERAL_FILES, problem=True))
        elif suffix in SLIDE_SUFFIXES or _is_slide(filesystem, match):
            folder, separator, name = url.rpartition("/")
            found.slides.append((url, f"{folder}{separator}{without_ending(name)}"))
        else:
            found.left_out.append(LeftOut(url, NOT_A_SLIDE))
    return found


def _is_slide(filesystem: Any, path: str) -> bool:
    """Whether it is a slide by content; one that cannot be looked at is an error once it is to be scored."""
    try:
        with filesystem.open(path, "rb") as stream:
            return is_slide(stream.read(HEAD_BYTES))
    except Exception:  # every backend has its own kinds
        return True


def source_version(location: str) -> str:
    """What changes when the file behind a URL does: size, and etag, checksum or time, as its storage tells.

    Begins with ``SIZE_ONLY`` where the storage tells no more than the size.

    Raises
    ------
    StorageError
        If there is no such file, or the storage cannot be reached.
    """
    filesystem, path = _filesystem(location)
    try:
        info = dict(filesystem.info(path))
    except Exception as error:
        raise _unreachable(location, error) from error
    told = {name: str(info[name]) for name in _VERSION_FACTS if info.get(name) is not None}
    digest = hashlib.sha256(repr((location, info.get("size"), sorted(told.items()))).encode()).hexdigest()
    return digest if told else f"{SIZE_ONLY}{digest}"


def _filesystem(location: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise InputError(f"{location}: needs fsspec ({error}): pip install 'm2ost-triton[archive]'") from error
    try:
        filesystem, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{location}: {error}; pip install 'm2ost-triton[archive]' and the storage's own package"
        ) from error
    return filesystem, str(path)


def size_bytes(location: str) -> int:
    """The size of the file behind a URL.

    Raises
    ------
    StorageError
        If it cannot be told.
    """
    filesystem, path = _filesystem(location)
    try:
        size = filesystem.size(path)
    except Exception as error:
        raise _unreachable(location, error) from error
    if size is None:
        raise StorageError(f"{location}: its storage does not tell its size, so that no room can be kept; copy it here")
    return int(size)


def download(location: str, copy: Path) -> None:
    """Fetch the file behind a URL; the copy under its final name is whole.

    Raises
    ------
    StorageError
        If it cannot be fetched.
    OutputError
        If the copy cannot be written.
    """
    filesystem, path = _filesystem(location)
    part = copy.with_name(copy.name + ".part")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        source = filesystem.open(path, "rb")
    except OSError as error:
        raise _unreachable(location, error) from error
    with source, part.open("wb") as target:
        while True:
            try:
                block = source.read(_BLOCK_BYTES)
            except Exception as error:
                raise _unreachable(location, error) from error
            if not block:
                break
            try:
                target.write(block)
            except OSError as error:
                raise OutputError(f"{part}: {error.strerror}; free space, or choose another --cache") from error
    expected = size_bytes(location)
    if part.stat().st_size != expected:
        raise StorageError(
            f"{location}: {part.stat().st_size:,} of {expected:,} bytes came; run the same command again"
        )
    part.replace(copy)


def _unreachable(location: str, error: BaseException) -> StorageError:
    return StorageError(f"{location}: cannot be fetched: {type(error).__name__}: {error}")
