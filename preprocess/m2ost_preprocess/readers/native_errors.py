"""What native decoders print instead of raising.

cuCIM answers for a damaged tile with invented pixels and a line on stdout. A decoder process taps its own output to
notice: whoever reads looks at what was printed meanwhile. With several threads that may be another's, so a read that
sees an error can be innocent, but none that failed goes unnoticed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os

_LIBC = ctypes.CDLL(None)
_tap: tuple[int, int] | None = None  # (the tapped file, the real stderr)


def install() -> None:
    """Tap this process's stdout and stderr."""
    global _tap
    if _tap is None:
        tapped, real = os.memfd_create("m2ost-output"), os.dup(2)
        # Appended, whatever two threads print at once: they share a position, and nothing else guards it here.
        fcntl.fcntl(tapped, fcntl.F_SETFL, fcntl.fcntl(tapped, fcntl.F_GETFL) | os.O_APPEND)
        os.dup2(tapped, 1)
        os.dup2(tapped, 2)
        _tap = tapped, real


def mark() -> int:
    """Where the tap stands.

    Returns
    -------
    int
        For :func:`since`; not to be kept beyond :func:`pass_on`.
    """
    if _tap is None:
        return 0
    _LIBC.fflush(None)
    return os.fstat(_tap[0]).st_size


def since(start: int) -> str:
    """What was printed, by any thread.

    Parameters
    ----------
    start : int
        Since when: what :func:`mark` said.

    Returns
    -------
    str
        Empty where nothing is tapped.
    """
    end = mark()
    if _tap is None or end == start:
        return ""
    return os.pread(_tap[0], end - start, start).decode(errors="replace")


def pass_on() -> None:
    """Empty the tap into the real stderr. Nobody may be reading meanwhile."""
    size = mark()
    if _tap is None or size == 0:
        return
    tapped, real = _tap
    text = os.pread(tapped, size, 0)
    os.ftruncate(tapped, 0)
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(real, text)
