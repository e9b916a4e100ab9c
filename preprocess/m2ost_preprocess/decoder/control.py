"""A page of memory that a decoder and its child both see while a job is done: how far it is, and for whom."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from m2ost_contract import MAX_ROWS

_BYTES = 4096


class Control:
    """What both ends know of the job under way, in the memory of :func:`new_control`; does not close its descriptor.

    ``unwanted``, uint8 of shape (256,), is not 0 in rows of the job that nobody waits for any more: the parent writes
    it, and the child looks at it before each region.
    """

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, _BYTES)
        memory = np.frombuffer(self._page, np.uint8)
        # Bytes 0–7 count beats, byte 8 says ``at_files``, and from 16 on there is a byte a row.
        self._beats: Any = memory[:8].view(np.uint64)
        self._at_files: Any = memory[8:9]
        self.unwanted: Any = memory[16 : 16 + MAX_ROWS]

    @property
    def beats(self) -> int:
        """A number that changes as long as the child gets on."""
        return int(self._beats[0])

    def beat(self) -> None:
        """Say that there is progress."""
        self._beats[0] += np.uint64(1)

    @property
    def at_files(self) -> bool:
        """Whether the child waits for the file system to tell which files the slide has."""
        return bool(self._at_files[0])

    @at_files.setter
    def at_files(self, value: bool) -> None:
        self._at_files[0] = value

    def close(self) -> None:
        """Let the memory go; not to be used any more."""
        self._beats = self._at_files = self.unwanted = None
        self._page.close()

    def reset(self) -> None:
        """Begin a job: all of its rows are wanted."""
        self.unwanted[:] = 0
        self.at_files = False

    def give_up(self, rows: Sequence[int]) -> None:
        """Mark rows that nobody waits for any more."""
        self.unwanted[list(rows)] = 1


def new_control() -> int:
    """Memory for a :class:`Control`: a file descriptor, which a child may inherit."""
    descriptor = os.memfd_create("m2ost-control")
    os.ftruncate(descriptor, _BYTES)
    return descriptor
