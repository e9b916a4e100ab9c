"""Files and folders that are complete under their final names, or absent, also after a crash of the machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_file(destination: Path) -> Iterator[Path]:
    """Yield the path of a scratch file that replaces ``destination`` only if the block ends without an error.

    Parameters
    ----------
    destination : Path
        In a folder that exists.

    Yields
    ------
    Path
        An empty file beside it, to be written or replaced.

    Raises
    ------
    OSError
        If it cannot be written. An earlier file of that name is still there then.
    """
    handle, name = tempfile.mkstemp(prefix=f".{destination.name}.", dir=destination.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        scratch.chmod(0o666 & ~_umask())
        put(scratch, destination)
    finally:
        scratch.unlink(missing_ok=True)


def write_complete(destination: Path, text: str) -> None:
    """Write a text file, UTF-8, complete under its name or not at all.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with complete_file(destination) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def complete_folder(destination: Path) -> Iterator[Path]:
    """Yield a scratch folder that becomes ``destination`` only if the block ends without an error.

    Raises
    ------
    FileExistsError
        If ``destination`` exists: checkpoints and releases are immutable.
    """
    destination = destination.resolve()
    if destination.exists():
        raise FileExistsError(f"{destination} exists and is never overwritten; choose another folder or remove it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        yield scratch
        scratch.chmod(0o777 & ~_umask())
        put(scratch, destination)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def put(finished: Path, destination: Path) -> None:
    """Give a finished file or folder its final name, once all of it is on the disk.

    Parameters
    ----------
    finished : Path
        On the same file system.
    destination : Path
        A file is replaced; a folder must not be there.
    """
    sync(finished)
    os.replace(finished, destination)
    sync_names(destination.parent)


def sync(path: Path) -> None:
    """See a file, or all files of a folder, on the disk; what links lead to is others' business."""
    for file in (
        (found for found in path.rglob("*") if found.is_file() and not found.is_symlink()) if path.is_dir() else (path,)
    ):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def sync_names(folder: Path) -> None:
    """See the names in a folder on the disk: without, a file that was just put there may be gone after a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The permissions that this process takes from new files, as Linux tells them without changing them."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("Umask:")), 8)
