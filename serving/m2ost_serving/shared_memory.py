"""Room in /dev/shm for what a model of Triton's Python backend hands on. Knows nothing of Triton.

Each model's process has a region there that grows, by whole MiB, whenever it has no hole for a tensor, and never
shrinks. A tensor that finds no room when it is sent leaves its request without an answer for ever: the backend has
closed the way to the client by then. (An answer and its end may be sent apart, but that now and then ends tritonserver
2.51.) So whether there is room is looked at before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from m2ost_contract import shm_mib

SHM = Path("/dev/shm")

_MIB = 1 << 20
_ALIGNED_BYTES = 128
"""What the backend adds to a tensor for its own book-keeping, at most."""


class NoSharedMemory(Exception):
    """What is to be handed on finds no room; says what would."""


class SharedMemory:
    """Sees to it that tensors find room; thread-safe.

    They do where all of them could lie behind the end of the region, or where as much was handed on before, for then
    the region has a hole of that size; others must not take it meanwhile.

    Parameters
    ----------
    free_bytes : callable
        What the holes in the own region come to now, in bytes.
    folder : Path
        Where the regions lie.
    """

    def __init__(self, free_bytes: Callable[[], int], folder: Path = SHM) -> None:
        self._free_bytes, self._folder = free_bytes, folder
        self._sending, self._largest = threading.Lock(), 0

    @contextmanager
    def room(self, sizes: Sequence[int]) -> Iterator[None]:
        """Room for tensors that are handed on inside the block.

        Parameters
        ----------
        sizes : sequence of int
            Bytes of each.

        Raises
        ------
        NoSharedMemory
            If there is none now.
        """
        total = sum(sizes)
        with self._sending:
            left = self._left()
            if _grown(sizes) > left and (total > self._largest or total > self._free_bytes()):
                raise NoSharedMemory(
                    f"an answer of {_mib(total)} MiB finds no room in {self._folder}, where {_mib(left)} MiB are left; "
                    "ask for fewer spots a request, or give the server more, for a container "
                    f"--shm-size {shm_mib(total)}m"
                )
            yield
            self._largest = max(self._largest, total)

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
        left, largest = self._left(), self._largest

        def fit(count: int) -> bool:
            return count * sum(sizes) <= largest or _grown([count * size for size in sizes]) <= left

        if fit(rows):
            return
        most, total = next((n for n in range(rows - 1, 0, -1) if fit(n)), 0), rows * sum(sizes)
        fewer = f"send at most {most} spots a request (--batch-rows {most}), or " if most else ""
        raise NoSharedMemory(
            f"the views of {rows} spots take {_mib(total)} MiB of {self._folder}, where {_mib(left)} MiB are left; "
            f"{fewer}give the server more, for a container --shm-size {shm_mib(total)}m"
        )

    def _left(self) -> int:
        there = os.statvfs(self._folder)
        return there.f_bavail * there.f_frsize


def _grown(sizes: Sequence[int]) -> int:
    """Bytes by which a region without holes grows for tensors."""
    return sum(((size + _ALIGNED_BYTES) // _MIB + 1) * _MIB for size in sizes)


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f}"
