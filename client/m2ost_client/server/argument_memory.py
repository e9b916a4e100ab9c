"""A secret among a child's arguments, which all users of a machine see: overwritten where the child keeps them."""

from __future__ import annotations

from pathlib import Path

_ARGUMENTS_BEGIN, _ARGUMENTS_END = 45, 46
"""Where /proc/PID/stat has them, counted from its first field after the program's name."""


def hide_rest(pid: int, beginning: str) -> None:
    """Overwrite what follows the beginning of an argument of a child, once the child has read it.

    Parameters
    ----------
    pid : int
        Of a child of this process.
    beginning : str
        What the argument begins with; it stays.

    Raises
    ------
    OSError
        If there is no such argument, or Linux does not let this process write there, or it is still there afterwards.
    """
    known = beginning.encode()
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    first, last = int(fields[_ARGUMENTS_BEGIN]), int(fields[_ARGUMENTS_END])
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(first)
        begin, end = _rest(memory.read(last - first), known)
        memory.seek(first + begin)
        memory.write(b"*" * (end - begin))
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    begin, end = _rest(arguments, known)
    if arguments[begin:end].strip(b"*"):
        raise OSError("it is still there after it was overwritten")


def _rest(arguments: bytes, known: bytes) -> tuple[int, int]:
    """Where the rest of the argument that begins so begins and ends."""
    before, found, after = arguments.partition(b"\0" + known)
    if not found:
        raise OSError(f"none of the arguments begins with {known.decode()}")
    begin = len(before) + len(found)
    return begin, begin + after.index(b"\0")
