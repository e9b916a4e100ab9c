"""Folders that are complete or absent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        scratch.chmod(0o755)
        os.rename(scratch, destination)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
