"""What several tests need and takes long to make: made once a run, by whichever worker comes first."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that ``make`` fills, for all workers of this run together. No test may change it.

    Runs that are to share it too are told where, by a folder that whoever starts them makes anew.
    """
    root = Path(os.environ.get("M2OST_MADE_ONCE", factory.getbasetemp()))
    if "PYTEST_XDIST_WORKER" in os.environ and "M2OST_MADE_ONCE" not in os.environ:
        root = root.parent  # the run's own, in which each worker has a folder
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder)
                raise
    return folder
