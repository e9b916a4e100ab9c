"""Memory of processes, as it must be counted to see whether it grows."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
from m2ost_client.host import SHM
from m2ost_client.supervisor import TritonServer

MIB = 1 << 20


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


def shared_mib(server: TritonServer) -> float:
    """Shared memory of a server's Python models, in MiB."""
    return sum(region.stat().st_blocks * 512 for region in SHM.glob(f"{server.shm_prefix}*")) / MIB
