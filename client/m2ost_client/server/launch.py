"""Run by the server's interpreter, as a file: becomes tritonserver, with the limits and the privacy that it needs.

Usage: launch.py [--end-with FILE ARGUMENT] PROGRAM ARGUMENT…. Standard library alone.

With ``--end-with`` a last argument follows: ARGUMENT and what is in FILE, a secret that no command but the last one's
may hold.

The process may open as many files as its user is allowed, for every connection is one. What it creates is its user's
alone. That takes more than a umask for the regions in /dev/shm through which Triton hands on pixels: its library gives
each, once it is created, the mode 0644 by fchmod. A seccomp filter answers that one call with success and does nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

MOST_OPEN_FILES = 1 << 16
"""More are not asked for, even where all users may have a thousand million."""

_PUBLIC_MODE = 0o644
_NO_NEW_PRIVILEGES, _SET_FILTER, _KEEP_SPECULATION = 38, 1, 4
_MACHINES = {"x86_64": (0xC000003E, 91, 317), "aarch64": (0xC00000B7, 52, 277)}
"""Linux's word for the machine, and its numbers there of the system calls fchmod and seccomp."""

_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _SUCCEED_WITHOUT = 0x7FFF0000, 0x00050000
_NUMBER, _MACHINE, _SECOND_ARGUMENT = 0, 4, 24
"""Where the kernel's description of a system call has its number, the machine, and the second argument."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def main(command: list[str]) -> None:
    """Become the program."""
    if command[0] == "--end-with":
        _, path, argument, *command = command
        try:
            with open(path, encoding="ascii") as file:
                command.append(argument + file.read().strip())
        except (OSError, ValueError) as error:
            sys.exit(f"{path}: cannot be read: {error}")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    os.umask(0o077)
    try:
        keep_modes()
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: cannot be run: {error}")


def keep_modes() -> None:
    """Let no process from here on make a file that it has open readable by all, by ``fchmod(file, 0644)``.

    Raises
    ------
    OSError
        If Linux installs no such filter.
    """
    if platform.machine() not in _MACHINES:
        raise OSError(f"shared memory cannot be kept private on {platform.machine()}")
    machine, fchmod, seccomp = _MACHINES[platform.machine()]
    instructions = (
        (_LOAD, 0, 0, _MACHINE),
        (_JUMP_IF_EQUAL, 0, 5, machine),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_EQUAL, 0, 3, fchmod),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_JUMP_IF_EQUAL, 0, 1, _PUBLIC_MODE),
        (_RETURN, 0, 0, _SUCCEED_WITHOUT),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(instructions), code)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(
        seccomp, _SET_FILTER, _KEEP_SPECULATION, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), f"shared memory cannot be kept private: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv[1:])
