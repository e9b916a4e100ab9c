"""What native decoders print instead of raising.

cuCIM answers for a damaged tile with invented pixels and a line on stdout. A decoder process, which reads with one
thread, taps its own output to notice. The other decoders print too, beside raising: a read that listens empties the tap
first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_LIBC = ctypes.CDLL(None)
_tap: tuple[int, int] | None = None  # (the tapped file, the real stderr)


def install() -> None:
    """Tap this process's stdout and stderr. For a process that reads slides with a single thread."""
    global _tap
    if _tap is None:
        tapped, real = os.memfd_create("m2ost-output"), os.dup(2)
        os.dup2(tapped, 1)
        os.dup2(tapped, 2)
        _tap = tapped, real


def take() -> str:
    """Empty the tap.

    Returns
    -------
    str
        What was printed since the last call, passed on to the real stderr; empty where nothing is tapped.
    """
    if _tap is None:
        return ""
    tapped, real = _tap
    _LIBC.fflush(None)
    size = os.lseek(tapped, 0, os.SEEK_CUR)
    if size == 0:
        return ""
    text = os.pread(tapped, size, 0)
    os.ftruncate(tapped, 0)
    os.lseek(tapped, 0, os.SEEK_SET)
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(real, text)
    return text.decode(errors="replace")
