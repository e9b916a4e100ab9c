"""The real data that tests read, and what happens where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def shared_file(relative: str) -> Path:
    """A file of the shared data. Absent, it skips the test by name; in CI it fails it."""
    root = Path(os.environ.get("M2OST_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    path = root / relative
    if not path.exists():
        reason = f"real data absent: {path} (set M2OST_SHARED_DATA)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
