"""The largest batch that fits under a memory cap, found by running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from m2ost_loadtests.errors import MemoryCapExceeded

from ..process_memory import MIB
from .workers import CappedProcess, System

HEADROOM = 0.95
"""Share of the cap that a batch may reach when it is chosen: later runs of the same batch vary by a few per cent."""

PRECISION = 16
"""The batch is found to within one part in this many."""


@dataclass(frozen=True)
class LargestBatch:
    """What was found.

    Parameters
    ----------
    batch : int
        Rows.
    peak_bytes : dict of int to int or None
        Every batch that was run → peak resident memory of its process; None where it did not fit.
    """

    batch: int
    peak_bytes: dict[int, int | None]


def largest_batch(make: Callable[[int], System], *, cap_bytes: int, most: int, on_host: bool = True) -> LargestBatch:
    """Find the largest batch whose process stays within the cap.

    Every trial is a run in a fresh process: an allocator that has once grown tells nothing about a smaller batch.

    Parameters
    ----------
    make : callable
        Batch → a system that runs at least one whole batch.
    cap_bytes : int
        Most resident memory of the process.
    most : int
        Largest batch that makes sense.
    on_host : bool
        False for a system that keeps to a limit of its own, as an allocator on a GPU does.

    Raises
    ------
    MemoryCapExceeded
        If not even one row fits; says how much it takes.
    """
    peaks: dict[int, int | None] = {}

    def fits(batch: int) -> bool:
        peaks[batch] = _peak(make(batch), int(HEADROOM * cap_bytes) if on_host else None)
        return peaks[batch] is not None

    if not fits(1):
        raise MemoryCapExceeded(
            f"the cap of {cap_bytes / MIB:.0f} MiB is too small for a batch of 1; give a larger --memory-cap"
        )
    low, high = 1, most + 1
    while high - low > max(1, low // PRECISION):
        batch = _next(peaks, low, high, cap_bytes)
        low, high = (batch, high) if fits(batch) else (low, batch)
    return LargestBatch(low, peaks)


def _next(peaks: dict[int, int | None], low: int, high: int, cap_bytes: int) -> int:
    """A batch between a fitting and a failing one: where a straight line through two fitting ones meets the cap."""
    fitting = sorted((batch, peak) for batch, peak in peaks.items() if peak is not None)
    if len(fitting) < 2:
        return min(high - 1, 4 * low)
    (a, peak_a), (b, peak_b) = fitting[-2:]
    slope = max(1.0, (peak_b - peak_a) / (b - a))
    reached = int(b + (HEADROOM * cap_bytes - peak_b) / slope)
    return max(low + 1, min(high - 1, reached))


def _peak(system: System, cap_bytes: int | None) -> int | None:
    try:
        with CappedProcess(system, cap_bytes=cap_bytes) as process:
            return process.run().peak_bytes
    except MemoryCapExceeded:
        return None
