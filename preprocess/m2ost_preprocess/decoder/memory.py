"""How much memory a decoder's process may take, and when it is replaced for having grown."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path

from m2ost_contract import ENV_DECODER_MEMORY_MIB

DEFAULT_MIB = 8192
"""Enough for the largest plain image (5 GiB while it is decoded) beside 2 GiB of others and the caches."""

MIN_MIB = 512
"""A process that has read nothing takes 250."""

REPLACED_FROM = 0.5
"""Share of the ceiling above which a process that has answered is replaced before its next job."""

_MIB = 1 << 20


def ceiling_mib(environment: Mapping[str, str]) -> int:
    """The ceiling that an environment asks for, in MiB; 0: none.

    Raises ``ValueError`` where that is no whole number, or too small for any slide.
    """
    given = environment.get(ENV_DECODER_MEMORY_MIB, str(DEFAULT_MIB))
    if not given.isdecimal() or 0 < int(given) < MIN_MIB:
        raise ValueError(f"{ENV_DECODER_MEMORY_MIB} must be 0 (no limit) or from {MIN_MIB} MiB on, not {given!r}")
    return int(given)


def limit_own(mib: int) -> None:
    """Hold this process to a ceiling in MiB; 0: none.

    Private writable memory counts: not what is shared, and not addresses that CUDA reserves.
    """
    if mib:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = mib * _MIB if hard == resource.RLIM_INFINITY else min(mib * _MIB, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def has_outgrown(pid: int, mib: int) -> bool:
    """Whether a child with that ceiling in MiB (0: none) should be replaced for its memory; not where nobody knows."""
    try:
        _, resident, shared = (int(pages) for pages in Path(f"/proc/{pid}/statm").read_text().split()[:3])
    except (OSError, ValueError):
        return False
    return bool(mib) and (resident - shared) * os.sysconf("SC_PAGE_SIZE") > REPLACED_FROM * mib * _MIB
