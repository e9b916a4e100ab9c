"""Room in /dev/shm for what a model of Triton's Python backend hands on. Knows nothing of Triton.

Each model's process has a region there that grows, by whole MiB, whenever it has no hole for a tensor, and never
shrinks. A tensor that finds no room when it is sent leaves its request without an answer: the backend has closed the
way to the client by then. So whether there is room is looked at before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from m2ost_contract import shm_mib

SHM = Path("/dev/shm")

_MIB = 1 << 20
_ALIGNED_BYTES = 128
"""What the backend adds to a tensor for its own book-keeping, at most."""


class NoSharedMemory(Exception):
    """What is to be handed on finds no room; says what would."""


class SharedMemory:
    """Whether tensors find room.

    Parameters
    ----------
    free_bytes : callable
        What the holes in the own region come to now, in bytes.
    folder : Path
        Where the regions lie.
    """

    def __init__(self, free_bytes: Callable[[], int], folder: Path = SHM) -> None:
        self._free_bytes, self._folder, self._most_free = free_bytes, folder, 0

    def check_now(self, sizes: Sequence[int]) -> None:
        """Refuse tensors that find no room now.

        Parameters
        ----------
        sizes : sequence of int
            Bytes of each.

        Raises
        ------
        NoSharedMemory
        """
        free = self._free()
        if not _fit(sizes, free, self._left()):
            raise NoSharedMemory(
                f"an answer of {_mib(sum(sizes))} MiB finds no room in {self._folder}: {_mib(self._left())} MiB are "
                f"left there, and {_mib(free)} in the model's own region; ask for fewer spots a request, or give the "
                "server more, for a container by --shm-size"
            )

    def check_rows(self, rows: int, sizes: Sequence[int]) -> None:
        """Refuse a request whose views would find no room even if no other were under way.

        Parameters
        ----------
        rows : int
            Spots of it.
        sizes : sequence of int
            Bytes of each view of a spot.

        Raises
        ------
        NoSharedMemory
            Says how many spots a request may have, and how large /dev/shm must be for this one.
        """
        free, left = max(self._most_free, self._free()), self._left()

        def fit(count: int) -> bool:
            return _fit([count * size for size in sizes], free, left)

        if fit(rows):
            return
        most, total = next((n for n in range(rows - 1, 0, -1) if fit(n)), 0), rows * sum(sizes)
        fewer = f"send at most {most} spots a request (--batch-rows {most}), or " if most else ""
        raise NoSharedMemory(
            f"the views of {rows} spots take {_mib(total)} MiB of {self._folder}, and {_mib(free + left)} MiB can be "
            f"had there; {fewer}give the server more, for a container --shm-size {shm_mib(total)}m"
        )

    def _free(self) -> int:
        free = self._free_bytes()
        self._most_free = max(self._most_free, free)
        return free

    def _left(self) -> int:
        there = os.statvfs(self._folder)
        return there.f_bavail * there.f_frsize


def _fit(sizes: Sequence[int], hole: int, left: int) -> bool:
    """Whether tensors find room one after the other, in a hole of a region or by its growth into what is left."""
    for size in sizes:
        size += _ALIGNED_BYTES
        if size <= hole:
            hole -= size
        else:
            left -= (size // _MIB + 1) * _MIB
            if left < 0:
                return False
    return True


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f}"
