"""Slides elsewhere: whatever fsspec reads."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from m2ost_contract import install_command

from ..errors import InputError, OutputError
from .content import DICOM_SUFFIX, HEAD_BYTES, SEVERAL_FILES, SLIDE_SUFFIXES, is_slide, suffix_of, without_ending
from .patience import PATIENCE, Interrupted, Patience
from .scan import FOLDER_WITHOUT_SLIDES, NOT_A_SLIDE, Found, LeftOut

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*(::|://)")
_BLOCK_BYTES = 4 << 20
"""Asked for at a time, so that a link that is slow is no stall."""
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


def sort_out_urls(pattern: str, patience: Patience = PATIENCE) -> Found:
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
        elif suffix in SLIDE_SUFFIXES or _is_slide(filesystem, match, patience):
            folder, separator, name = url.rpartition("/")
            found.slides.append((url, f"{folder}{separator}{without_ending(name)}"))
        else:
            found.left_out.append(LeftOut(url, NOT_A_SLIDE))
    return found


def _is_slide(filesystem: Any, path: str, patience: Patience) -> bool:
    """Whether it is a slide by content; one that cannot be looked at is an error once it is to be scored."""

    def head() -> bytes:
        with filesystem.open(path, "rb", block_size=HEAD_BYTES) as stream:
            return bytes(stream.read(HEAD_BYTES))

    try:
        return is_slide(patience.once(head))
    except Exception:  # every backend has its own kinds
        return True


def source_version(location: str, *, fresh: bool = False, patience: Patience = PATIENCE) -> str:
    """What changes when the file behind a URL does: size, and etag, checksum or time, as its storage tells.

    Begins with ``SIZE_ONLY`` where the storage tells no more than the size.

    Parameters
    ----------
    location : str
    fresh : bool
        Ask the storage now; else a listing of before will do.
    patience : Patience

    Raises
    ------
    StorageError
        If there is no such file, or the storage cannot be reached.
    """
    filesystem, path = _filesystem(location)
    return patience.persist(
        lambda: _version(location, _info(filesystem, path, fresh, patience)), _unreachable(location)
    )


def _info(filesystem: Any, path: str, fresh: bool, patience: Patience) -> dict[str, Any]:
    """What the storage tells of a file, asked once."""

    def ask() -> dict[str, Any]:
        if fresh:
            filesystem.invalidate_cache(path)
        return dict(filesystem.info(path))

    return patience.once(ask)


def _version(location: str, info: dict[str, Any]) -> str:
    """Of what the storage tells of a file."""
    told = {name: str(info[name]) for name in _VERSION_FACTS if info.get(name) is not None}
    digest = hashlib.sha256(repr((location, info.get("size"), sorted(told.items()))).encode()).hexdigest()
    return digest if told else f"{SIZE_ONLY}{digest}"


def _filesystem(location: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise InputError(f"{location}: needs fsspec ({error}): {install_command('archive')}") from error
    try:
        filesystem, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise InputError(f"{location}: {error}; {install_command('archive')} and the storage's own package") from error
    return filesystem, str(path)


def size_bytes(location: str, *, patience: Patience = PATIENCE) -> int:
    """The size of the file behind a URL.

    Raises
    ------
    StorageError
        If it cannot be told.
    """
    filesystem, path = _filesystem(location)
    info = patience.persist(lambda: _info(filesystem, path, False, patience), _unreachable(location))
    return _size(location, info)


def _size(location: str, info: dict[str, Any]) -> int:
    """Of what the storage tells of a file."""
    if info.get("size") is None:
        raise StorageError(f"{location}: its storage does not tell its size, so that no room can be kept; copy it here")
    return int(info["size"])


def download(location: str, copy: Path, *, version: str | None = None, patience: Patience = PATIENCE) -> None:
    """Fetch the file behind a URL; the copy under its final name is whole, and of one version.

    What fails for a while is tried again, and goes on where it stopped if the storage tells that the file is the same.

    Parameters
    ----------
    location : str
    copy : Path
        Where the copy is to lie.
    version : str, optional
        The one that is meant (:func:`source_version`); by default whichever there is.
    patience : Patience

    Raises
    ------
    StorageError
        If it cannot be fetched, or becomes another file meanwhile.
    OutputError
        If the copy cannot be written.
    """
    part = copy.with_name(copy.name + ".part")
    version = version or source_version(location, fresh=True, patience=patience)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        target = part.open("wb")
    except OSError as error:
        raise _unwritable(part, error) from error
    with target:
        patience.persist(
            lambda: _copy_rest(location, version, target, part, patience), _unreachable(location), target.tell
        )
    if source_version(location, fresh=True, patience=patience) != version:
        raise _replaced(location)
    part.replace(copy)


def _copy_rest(location: str, version: str, target: IO[bytes], part: Path, patience: Patience) -> None:
    """Copy what the target has not yet, or all where the storage cannot go on in the middle."""
    filesystem, path = _filesystem(location)
    info = _info(filesystem, path, True, patience)
    if _version(location, info) != version:
        raise _replaced(location)
    size = _size(location, info)
    source = patience.once(lambda: filesystem.open(path, "rb", block_size=_BLOCK_BYTES))
    if target.tell() and not _continues(source, version, target.tell()):
        target.seek(0)
        target.truncate()
    while block := patience.once(lambda: source.read(_BLOCK_BYTES)):
        try:
            target.write(block)
        except OSError as error:
            raise _unwritable(part, error) from error
    patience.once(source.close)
    if target.tell() != size:
        raise Interrupted(f"{target.tell():,} of {size:,} bytes came")


def _continues(source: Any, version: str, position: int) -> bool:
    """Go to where the copy stopped; whether that can be done, and the file is sure to be the same."""
    try:
        return not version.startswith(SIZE_ONLY) and source.seek(position) == position
    except Exception:  # a stream that is read from its beginning
        return False


def _replaced(location: str) -> StorageError:
    return StorageError(f"{location}: became another file while it was fetched; run the same command again")


def _unwritable(part: Path, error: OSError) -> OutputError:
    return OutputError(f"{part}: {error.strerror}; free space, or choose another --cache")


def _unreachable(location: str) -> Callable[[Exception, int], Exception]:
    """Makes the error of the last of so many tries."""

    def named(error: Exception, tries: int) -> Exception:
        words = str(error) if isinstance(error, Interrupted) else f"{type(error).__name__}: {error}"
        return StorageError(f"{location}: cannot be fetched: {words}" + (f" ({tries} tries)" if tries > 1 else ""))

    return named
