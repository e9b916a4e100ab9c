"""What native decoders print instead of raising.

cuCIM answers for a damaged tile with invented pixels and a line on stdout or stderr, in words of the library that it
decodes with. A decoder process taps its own output to notice: whoever reads looks at what was printed meanwhile. Some
lines are known to be harmless; any other means that what was read cannot be trusted. With several threads a line may be
another's, so a read that sees one can be innocent, but none that failed goes unnoticed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re

HARMLESS = (
    r"cuFile|GDS|compatibility mode",  # no GPUDirect Storage: files are read by other means
    r"TIFFReadDirectory: Warning, Unknown field with tag",
    r"AdobeDeflate compression support is not configured",  # of its libtiff; cuCIM inflates tiles by itself
)
"""What native decoders may say: searched for in each line."""

_OUT_OF_MEMORY = re.compile(r"out of memory|insufficient memory|cannot allocate|bad_alloc", re.IGNORECASE)

_HARMLESS = re.compile("|".join(HARMLESS))
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
    """Where the tap stands, for :func:`since`; not to be kept beyond :func:`pass_on`."""
    if _tap is None:
        return 0
    # Libraries in C buffer what they print; the file has it only after this.
    _LIBC.fflush(None)
    return os.fstat(_tap[0]).st_size


def since(start: int) -> str:
    """What any thread printed since a :func:`mark`; empty where nothing is tapped."""
    end = mark()
    if _tap is None or end == start:
        return ""
    return os.pread(_tap[0], end - start, start).decode(errors="replace")


def complaint(start: int) -> str | None:
    """The first line since a :func:`mark`, by any thread, that is not known to be harmless; None where there is none.

    None also where nothing is tapped. Raises ``MemoryError`` where it says that memory ran out.
    """
    lines = (line.strip() for line in since(start).splitlines())
    found = next((line for line in lines if line and not _HARMLESS.search(line)), None)
    raise_if_out_of_memory(found or "")
    return found


def raise_if_out_of_memory(words: str) -> None:
    """Raise ``MemoryError`` where a library's words say that memory ran out, which is no damage of the file."""
    if _OUT_OF_MEMORY.search(words):
        raise MemoryError(words)


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
