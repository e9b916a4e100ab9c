"""Slides elsewhere: whatever fsspec reads, staged through a local folder of bounded size."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*(::|://)")
_BLOCK_BYTES = 4 << 20
_VERSION_FACTS = (
    "ETag", "etag", "md5Hash", "Content-MD5", "Digest", "checksum", "mtime", "LastModified", "last_modified", "updated",
    "created",
)  # fmt: skip

SIZE_ONLY = "size-"
"""How a version begins that may be the same though the file is another."""


class StorageError(InputError):
    """A slide cannot be fetched from where it lies."""


def is_url(location: str) -> bool:
    """Whether a location is fsspec's (``s3://bucket/a.svs``) and not a path."""
    return _URL.match(location) is not None


def matches(pattern: str) -> list[str]:
    """URLs that match a pattern.

    Raises
    ------
    InputError
        If none does, or the storage cannot be reached.
    """
    filesystem, path = _filesystem(pattern)
    protocol = pattern.partition("://")[0]
    try:
        found = [str(match) for match in filesystem.glob(path)]
    except Exception as error:  # every backend has its own kinds
        raise InputError(f"{pattern}: cannot be listed: {error}") from error
    if not found:
        raise InputError(f"{pattern}: nothing matches it")
    return [match if is_url(match) else f"{protocol}://{match}" for match in found]


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


class Staging:
    """Local copies of remote slides, no more bytes of them at a time than a limit.

    A copy under its final name is complete. It stays while someone uses it; a run that was killed finds it again.

    Parameters
    ----------
    folder : Path
        Where copies lie; what is in it from an earlier run counts.
    limit_bytes : int
        Most bytes of copies. A slide that is larger alone is refused; one that does not fit now waits.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.peak_bytes = 0
        self._limit_bytes = limit_bytes
        self._bytes: dict[Path, int] = {}
        self._users: dict[Path, int] = {}
        self._room = asyncio.Condition()
        self._fetching: dict[Path, asyncio.Lock] = {}

    def sweep(self) -> None:
        """Note what an earlier run left: complete copies are kept, others go, and those that may be of another file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for entry in self.folder.iterdir():
            whole = [file for file in entry.iterdir() if not file.name.endswith(".part")] if entry.is_dir() else []
            certain = not entry.name.startswith(SIZE_ONLY)
            if certain and len(whole) == 1 and len(list(entry.iterdir())) == 1:
                self._bytes[whole[0]] = whole[0].stat().st_size
            else:
                shutil.rmtree(entry, ignore_errors=True)

    @asynccontextmanager
    async def stage(self, location: str) -> AsyncIterator[tuple[Path, str]]:
        """A local copy of a remote slide, for as long as the block runs, and its version (:func:`source_version`).

        Raises
        ------
        StorageError
            If it cannot be fetched, or is larger than the cache.
        OutputError
            If the copy cannot be written.
        """
        version = await asyncio.to_thread(source_version, location)
        name = re.sub(r"[^\w.+ -]", "_", location.rsplit("/", 1)[-1].partition("?")[0]) or "slide"
        copy = self.folder / version[:32] / name
        self._users[copy] = self._users.get(copy, 0) + 1
        try:
            async with self._fetching.setdefault(copy, asyncio.Lock()):
                if copy not in self._bytes:
                    await self._fetch(location, copy)
            yield copy, version
        finally:
            self._users[copy] -= 1
            if not self._users[copy]:
                del self._users[copy]
                self._fetching.pop(copy, None)
                await self._remove(copy)

    async def _fetch(self, location: str, copy: Path) -> None:
        size = await asyncio.to_thread(_size_bytes, location)
        if size > self._limit_bytes:
            raise StorageError(
                f"{location}: {size:,} bytes, and the cache holds {self._limit_bytes:,}; give a larger --cache-gib"
            )
        async with self._room:
            await self._room.wait_for(lambda: self._make_room(size))
            self._bytes[copy] = size
            self.peak_bytes = max(self.peak_bytes, sum(self._bytes.values()))
        try:
            await asyncio.to_thread(_download, location, copy)
        except BaseException:
            await self._remove(copy)
            raise

    def _make_room(self, size: int) -> bool:
        """Whether a copy of that size fits; those that nobody uses make way."""
        for idle in [copy for copy in self._bytes if copy not in self._users]:
            if sum(self._bytes.values()) + size <= self._limit_bytes:
                break
            self._bytes.pop(idle)
            shutil.rmtree(idle.parent, ignore_errors=True)
        return sum(self._bytes.values()) + size <= self._limit_bytes

    async def _remove(self, copy: Path) -> None:
        await asyncio.to_thread(shutil.rmtree, copy.parent, True)
        async with self._room:
            self._bytes.pop(copy, None)
            self._room.notify_all()


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


def _size_bytes(location: str) -> int:
    filesystem, path = _filesystem(location)
    try:
        size = filesystem.size(path)
    except Exception as error:
        raise _unreachable(location, error) from error
    if size is None:
        raise StorageError(f"{location}: its storage does not tell its size, so that no room can be kept; copy it here")
    return int(size)


def _download(location: str, copy: Path) -> None:
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
    expected = _size_bytes(location)
    if part.stat().st_size != expected:
        raise StorageError(
            f"{location}: {part.stat().st_size:,} of {expected:,} bytes came; run the same command again"
        )
    part.replace(copy)


def _unreachable(location: str, error: BaseException) -> StorageError:
    return StorageError(f"{location}: cannot be fetched: {type(error).__name__}: {error}")
