"""Memory of processes, as it must be counted to see whether it grows; and their processor time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import psutil
from m2ost_client.server.host import SHM
from m2ost_client.server.supervisor import TritonServer

MIB = 1 << 20

Memory = dict[str, float]
"""MiB of each kind of memory."""


def anonymous_mib(root: psutil.Process, *, descendants: bool) -> float:
    """Memory that the processes have filled themselves, in MiB: heaps, stacks and what was written to a library's data.

    Pages that are read from a file are left out. The unique set size has them in it while no other process has the same
    library loaded: 89 MiB more or less for a client, whenever another program of its environment ends or begins.
    """
    processes = [root, *(root.children(recursive=True) if descendants else [])]
    return sum(_anonymous_kib(Path(f"/proc/{p.pid}/smaps_rollup").read_text()) for p in processes) / 1024


def _anonymous_kib(smaps: str) -> int:
    found = dict(re.findall(r"^(Anonymous|Swap): +(\d+) kB$", smaps, re.M))
    return sum(map(int, found.values()))


def processor_s(root: psutil.Process) -> float:
    """Processor time so far of a process and its living descendants, in seconds."""
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


def shared_mib(server: TritonServer) -> float:
    """Shared memory of a server's Python models, in MiB."""
    return sum(region.stat().st_blocks * 512 for region in SHM.glob(f"{server.shm_prefix}*")) / MIB


def memory_mib(server: TritonServer) -> Memory:
    """Memory of this process, the ``client``; of a ``server`` with its models' processes; and their ``shared`` one."""
    assert server.pid is not None
    return {
        "client": anonymous_mib(psutil.Process(), descendants=False),
        "server": anonymous_mib(psutil.Process(server.pid), descendants=True),
        "shared": shared_mib(server),
    }


def growth_mib(before: Sequence[Memory], after: Sequence[Memory]) -> Memory:
    """By how much the peak of each kind of memory is higher in ``after``; 0 or less where memory is flat."""
    return {name: max(m[name] for m in after) - max(m[name] for m in before) for name in before[0]}


def halves(samples: Sequence[Memory]) -> tuple[Sequence[Memory], Sequence[Memory]]:
    """The first and the second half of a run."""
    middle = len(samples) // 2
    return samples[:middle], samples[middle:]
