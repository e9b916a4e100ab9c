"""Local copies of slides that lie elsewhere, in a folder of bounded size that several runs may share."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from ..errors import OutputError
from .patience import PATIENCE, Patience
from .storage import SIZE_ONLY, StorageError, download, size_bytes, source_version

_RUN_PREFIX = "m2ost-run-"
_LOCK = "lock"


class Staging:
    """Local copies of remote slides, no more bytes of them at a time than a limit.

    A copy under its final name is complete, and stays while someone uses it. Each run keeps its copies in a folder of
    its own, which it locks: runs that share a cache never touch each other's, fetch for themselves, and are held to
    the limit one by one. What a run left that was killed goes to the next that opens the cache. Nothing else that lies
    in the folder is touched.

    Parameters
    ----------
    cache : Path
        Where the runs' folders lie.
    limit_bytes : int
        Most bytes of this run's copies. A slide that is larger alone is refused; one that does not fit now waits.
    patience : Patience
        With the storages.

    Attributes
    ----------
    peak_bytes : int
        Most bytes of copies so far.
    """

    def __init__(self, cache: Path, limit_bytes: int, patience: Patience = PATIENCE) -> None:
        self.peak_bytes = 0
        self._cache = cache
        self._limit_bytes = limit_bytes
        self._patience = patience
        self._folder = cache
        self._lock: IO[str] | None = None
        self._bytes: dict[Path, int] = {}
        self._users: Counter[Path] = Counter()
        self._room = asyncio.Condition()
        self._changing: dict[Path, asyncio.Lock] = {}

    def open(self) -> None:
        """Take a folder for this run, and over what runs left in theirs that live no more.

        Raises
        ------
        OutputError
            If the cache cannot be written or locked.
        """
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            while self._lock is None:  # another run may take it over before it is locked
                self._folder = self._cache / f"{_RUN_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
                self._folder.mkdir()
                self._lock = _locked(self._folder)
        except OSError as error:
            raise OutputError(
                f"{self._cache}: cannot be written or locked: {error.strerror}; choose another --cache"
            ) from error
        for other in self._cache.glob(f"{_RUN_PREFIX}*"):
            if other != self._folder:
                self._take_over(other)

    def close(self) -> None:
        """Give up this run's folder; copies that are still there are for the next run."""
        if self._lock is None:
            return
        if {entry.name for entry in self._folder.iterdir()} <= {_LOCK}:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()
        self._lock = None

    def _take_over(self, other: Path) -> None:
        """Take the copies of a run that lives no more; halves go, and those that may be of another file."""
        try:
            lock = _locked(other)
        except OSError:
            return  # another user's, or gone
        if lock is None:
            return
        with lock:
            for entry in other.iterdir():
                files = list(entry.iterdir()) if entry.is_dir() else []
                if entry.name.startswith(SIZE_ONLY) or len(files) != 1 or files[0].name.endswith(".part"):
                    continue
                size, own = files[0].stat().st_size, self._folder / entry.name
                if not own.exists() and sum(self._bytes.values()) + size <= self._limit_bytes:
                    entry.rename(own)
                    self._bytes[own / files[0].name] = size
            shutil.rmtree(other, ignore_errors=True)

    @asynccontextmanager
    async def stage(self, location: str) -> AsyncIterator[tuple[Path, str]]:
        """A local copy of a remote slide, for as long as the block runs, and its version (:func:`source_version`).

        Raises
        ------
        StorageError
            If it cannot be fetched, becomes another file meanwhile, or is larger than the cache.
        OutputError
            If the copy cannot be written.
        """
        version = await asyncio.to_thread(source_version, location, fresh=True, patience=self._patience)
        name = re.sub(r"[^\w.+ -]", "_", location.rsplit("/", 1)[-1].partition("?")[0]) or "slide"
        copy = self._folder / version[:32] / name
        changing = self._changing.setdefault(copy, asyncio.Lock())
        self._users[copy] += 1
        try:
            async with changing:
                if copy not in self._bytes:
                    await self._fetch(location, copy, version)
            yield copy, version
        finally:
            try:
                async with changing:
                    if self._users[copy] == 1:  # nobody else has come for it
                        await self._remove(copy)
            finally:
                self._users[copy] -= 1
                if not self._users[copy]:
                    del self._users[copy], self._changing[copy]

    async def _fetch(self, location: str, copy: Path, version: str) -> None:
        size = await asyncio.to_thread(size_bytes, location, patience=self._patience)
        if size > self._limit_bytes:
            raise StorageError(
                f"{location}: {size:,} bytes, and the cache holds {self._limit_bytes:,}; give a larger --cache-gib"
            )
        async with self._room:
            await self._room.wait_for(lambda: self._make_room(size))
            self._bytes[copy] = size
            self.peak_bytes = max(self.peak_bytes, sum(self._bytes.values()))
        try:
            await asyncio.to_thread(download, location, copy, version=version, patience=self._patience)
        except BaseException:
            await self._remove(copy)
            raise

    def _make_room(self, size: int) -> bool:
        """Whether a copy of that size fits; those that nobody uses make way."""
        for idle in [copy for copy in self._bytes if not self._users[copy]]:
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


def _locked(folder: Path) -> IO[str] | None:
    """The lock of a run's folder, held until it is closed; None where another holds it, or has removed it meanwhile."""
    path = folder / _LOCK
    try:
        stream = path.open("a", encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            return stream
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        stream.close()
        raise
    stream.close()
    return None
