"""The array modules that views are cut with: NumPy on the CPU, CuPy on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from m2ost_contract import M2OSTError

from .cuda import import_cupy, try_kernel
from .decoder.gpu import bytes_at
from .decoder.protocol import GpuSlots
from .readers.base import Pixels


class ArrayModuleUnavailable(M2OSTError, RuntimeError):
    """Views are to be cut on a GPU, and CuPy or the GPU is not there; the message says what to do."""


class Arrays(Protocol):
    """An array module and what it takes to bring pixels to it.

    Attributes
    ----------
    xp : module
        ``numpy`` or ``cupy``.
    gpu : int or None
        The GPU that the arrays lie on.
    """

    xp: ModuleType
    gpu: int | None

    def current(self) -> AbstractContextManager[object]:
        """Make the device the calling thread's while the context lasts; everything else is called inside."""

    def pin(self, memory: Pixels) -> Callable[[], None]:
        """Have the driver upload straight from this host memory, where it can; returns what undoes it."""

    def upload(self, target: Any, pixels: Any) -> None:
        """Copy pixels to an array of this module, C-contiguous, and return once they have been read."""

    def open_slots(self, slots: GpuSlots) -> list[Any]:
        """A decoder's slots in GPU memory as arrays of bytes."""

    def close_slots(self, arrays: list[Any]) -> None:
        """Give back what :meth:`open_slots` opened."""

    def synchronise(self) -> None:
        """Wait until all work on the arrays is done."""


class NumPyArrays:
    """The host's memory. Views cut here equal those of a GPU bit by bit."""

    xp: ModuleType = np
    gpu: int | None = None

    def current(self) -> AbstractContextManager[object]:
        """See :class:`Arrays`."""
        return nullcontext()

    def pin(self, memory: Pixels) -> Callable[[], None]:
        """See :class:`Arrays`."""
        return lambda: None

    def upload(self, target: Any, pixels: Any) -> None:
        """See :class:`Arrays`."""
        target[...] = pixels

    def open_slots(self, slots: GpuSlots) -> list[Any]:
        """See :class:`Arrays`."""
        raise ArrayModuleUnavailable("a decoder put pixels on a GPU for views that are cut on the CPU")

    def close_slots(self, arrays: list[Any]) -> None:
        """See :class:`Arrays`."""

    def synchronise(self) -> None:
        """See :class:`Arrays`."""


class CuPyArrays:
    """One GPU, on its default stream.

    Parameters
    ----------
    gpu : int
        The GPU, as CUDA numbers it.

    Raises
    ------
    ArrayModuleUnavailable
        If CuPy cannot be imported or finds no such GPU.
    """

    def __init__(self, gpu: int) -> None:
        try:
            cupy = import_cupy()
        except ImportError as error:
            raise ArrayModuleUnavailable(
                f"cannot cut views on GPU {gpu}: CuPy cannot be imported ({error}); "
                "run: pip install 'm2ost-triton[server-gpu]', or serve with the profile cpu"
            ) from error
        try:
            with cupy.cuda.Device(gpu):
                try_kernel(cupy)
        except Exception as error:
            raise ArrayModuleUnavailable(
                f"cannot cut views on GPU {gpu}: {type(error).__name__}: {error}; run: m2ost doctor, or serve with the "
                "profile cpu"
            ) from error
        self.xp: ModuleType = cupy
        self.gpu: int | None = gpu
        self._cupy: Any = cupy

    def current(self) -> AbstractContextManager[object]:
        """See :class:`Arrays`."""
        device: AbstractContextManager[object] = self._cupy.cuda.Device(self.gpu)
        return device

    def pin(self, memory: Pixels) -> Callable[[], None]:
        """See :class:`Arrays`. Where the system lets no memory be pinned, uploads take a detour of the driver's."""
        runtime, address = self._cupy.cuda.runtime, memory.ctypes.data
        try:
            runtime.hostRegister(address, memory.nbytes, 0)
        except runtime.CUDARuntimeError:
            return lambda: None
        return lambda: runtime.hostUnregister(address)

    def upload(self, target: Any, pixels: Any) -> None:
        """See :class:`Arrays`."""
        if isinstance(pixels, np.ndarray):
            target.set(pixels)
        else:
            target[...] = pixels
        self.synchronise()

    def open_slots(self, slots: GpuSlots) -> list[Any]:
        """See :class:`Arrays`."""
        assert self.gpu is not None
        pointers = [self._cupy.cuda.runtime.ipcOpenMemHandle(handle) for handle in slots.handles]
        return [bytes_at(self._cupy, pointer, slots.slot_bytes, self.gpu) for pointer in pointers]

    def close_slots(self, arrays: list[Any]) -> None:
        """See :class:`Arrays`."""
        for array in arrays:
            self._cupy.cuda.runtime.ipcCloseMemHandle(array.data.ptr)

    def synchronise(self) -> None:
        """See :class:`Arrays`."""
        self._cupy.cuda.get_current_stream().synchronize()
