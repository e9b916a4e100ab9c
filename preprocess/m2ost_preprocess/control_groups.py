"""What this process may use of the machine: CPUs, memory and threads, as its control groups (cgroups) limit them.

Containers are limited in no other way: inside one, Linux still tells the CPUs and the memory of the whole machine.
Version 1 and 2 are read, and every group from the process's own up to the first that can be seen from here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc")


def cpus(proc: Path = PROC) -> int:
    """How many CPUs this process can keep busy, at least 1: a part of one counts as a whole.

    Parameters
    ----------
    proc : Path
        Where Linux tells of processes.
    """
    most = float(len(os.sched_getaffinity(0)))
    for group in _groups("cpu", proc):
        quota, period = ([*_read(group / "cpu.max").split(), "", ""])[:2]
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            most = min(most, int(quota) / int(period))
    return max(1, math.ceil(most))


def memory_bytes(proc: Path = PROC) -> int:
    """Main memory that this process and its kin can have at most, in bytes: the machine's, or its control group's."""
    return min(_meminfo("MemTotal", proc), *(limit for limit, _ in _memory(proc)), 1 << 62)


def available_memory_bytes(proc: Path = PROC) -> int:
    """Main memory that is available, in bytes: of the machine, or what its control groups leave of it.

    What a group takes for files that can be read again is available too.
    """
    left = (max(0, limit - used) for limit, used in _memory(proc))
    return min(_meminfo("MemAvailable", proc), *left, 1 << 62)


def tasks_left(proc: Path = PROC) -> int | None:
    """Threads that may be started beside those that run, as control groups say; None without a limit."""
    left = []
    for group in _groups("pids", proc):
        most, now = _read(group / "pids.max"), _read(group / "pids.current")
        if most.isdecimal() and now.isdecimal():
            left.append(max(0, int(most) - int(now)))
    return min(left, default=None)


def _memory(proc: Path) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of every group that has a limit."""
    for group in _groups("memory", proc):
        for most, now, files in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _read(group / most), _read(group / now)
            if limit.isdecimal() and used.isdecimal():
                facts = dict(
                    line.split(maxsplit=1) for line in _read(group / "memory.stat").splitlines() if " " in line
                )
                yield int(limit), int(used) - int(facts.get(files, "0"))


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """Folders of the groups that may limit this process: its own and those above it, of both versions."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if controllers and controller not in controllers.split(","):
            continue
        for root, mounted in _mounts(controller if controllers else None, proc):
            # A container sees its own group as the topmost, under whatever name it has outside.
            inside = PurePosixPath(path)
            below = inside.relative_to(root) if inside.is_relative_to(root) else PurePosixPath()
            yield from (mounted / part for part in (below, *below.parents))


def _mounts(controller: str | None, proc: Path) -> Iterator[tuple[str, Path]]:
    """The group that is mounted, and where, for a controller of version 1, or None for version 2."""
    for line in _read(proc / "self" / "mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = ([*system.split(), "", "", ""])[:3]
        wanted = kind == "cgroup2" if controller is None else kind == "cgroup" and controller in options.split(",")
        if wanted:
            root, mounted = mount.split()[3:5]
            yield root, Path(mounted)


def _meminfo(name: str, proc: Path) -> int:
    lines = (line.split() for line in _read(proc / "meminfo").splitlines())
    return next(int(words[1]) << 10 for words in lines if words[0] == f"{name}:")


def _read(path: Path) -> str:
    """The text of a file of the kernel's; empty where there is none, or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
