"""CuPy, with the libraries of CUDA that it needs, wherever they came from."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def import_cupy() -> Any:
    """The module ``cupy``.

    CuPy compiles its kernels where it runs. Its wheels look for the compiler, NVRTC, where the system's loader does,
    not where pip puts the wheels of ``nvidia-cuda-nvrtc``; a library that is loaded already is found by its name. And
    they take CUDA's headers from wherever the system has a CUDA, with headers or without.

    Raises
    ------
    ImportError
        If there is no CuPy.
    """
    for library in _pip_libraries("libnvrtc.so.*"):
        with contextlib.suppress(OSError):
            if _load(library):
                _take_headers_of(library)
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


def _load(library: Path) -> bool:
    """Load a library, the system's of that name if there is one, as it fits the system's headers; else return True."""
    try:
        ctypes.CDLL(library.name)
    except OSError:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        return True
    return False


def _take_headers_of(library: Path) -> None:
    """Name the folder with the headers of a wheel's library to CuPy: of CUDA 12 a wheel of its own, of 13 the same."""
    for folder in (library.parents[2] / "cuda_runtime", library.parents[1]):
        if (folder / "include" / "cuda_fp16.h").is_file():
            os.environ["CUDA_PATH"] = str(folder)
