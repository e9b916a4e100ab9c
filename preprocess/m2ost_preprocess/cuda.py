"""CuPy, with the libraries of CUDA that it needs, wherever they came from."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def import_cupy() -> Any:
    """The module ``cupy``.

    CuPy compiles its kernels where it runs. Its wheels look for the compiler, NVRTC, where the system's loader does,
    not where pip puts the wheels of ``nvidia-cuda-nvrtc``; a library that is loaded already is found by its name.

    Raises
    ------
    ImportError
        If there is no CuPy.
    """
    for library in _pip_libraries("libnvrtc.so.*"):
        with contextlib.suppress(OSError):
            _load(library)
    import cupy

    return cupy


def try_kernel(cupy: Any) -> None:
    """Compile and run a kernel on the current GPU: the first of a process, which takes a second where none is cached.

    Raises
    ------
    Exception
        Of CUDA's runtime, of its compiler, or because a library or its headers are missing: they have no common base.
    """
    cupy.arange(2).sum().item()


def _pip_libraries(pattern: str) -> Iterator[Path]:
    found = importlib.util.find_spec("nvidia")
    for folder in (found.submodule_search_locations if found else None) or ():
        yield from sorted(Path(folder).glob(f"*/lib/{pattern}"))


def _load(library: Path) -> None:
    try:
        ctypes.CDLL(library.name)  # the system's, which fits the system's headers, comes first
    except OSError:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
