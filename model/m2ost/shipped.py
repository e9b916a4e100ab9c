"""The trained checkpoint that comes with this package; its model card is the README in its folder."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path

CHECKPOINT = "her2_tumour_c"


def shipped_checkpoint() -> AbstractContextManager[Path]:
    """Its folder, while the context lasts."""
    return as_file(files("m2ost") / "checkpoints" / CHECKPOINT)
