"""Data sets by layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from . import cscc, hbc, her2, hest, visium
from .errors import DataError
from .section import Section

LAYOUTS: dict[str, ModuleType] = {"her2": her2, "hbc": hbc, "cscc": cscc, "visium": visium, "hest": hest}
"""Modules with ``is_layout(root)`` and ``read(root, names)``."""


def read_sections(root: Path, names: Sequence[str] | None = None, layout: str = "auto") -> list[Section]:
    """Read sections of a data set.

    Parameters
    ----------
    root : Path
        Its folder.
    names : sequence of str, optional
        Which sections, in this order; by default all, by name. Others are not read.
    layout : str
        A key of :data:`LAYOUTS`, or ``auto`` to tell by the files that are there.

    Raises
    ------
    DataError
        If the layout is unknown, a named section does not exist, or a file cannot be used.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if layout == "auto":
        layout = next((name for name, reader in LAYOUTS.items() if reader.is_layout(root)), "")
        if not layout:
            raise DataError(f"{root}: no known layout of files; name one of {', '.join(LAYOUTS)}")
    if layout not in LAYOUTS:
        raise DataError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    sections: list[Section] = LAYOUTS[layout].read(root, names)
    return sections
