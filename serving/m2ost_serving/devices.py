"""Where arrays lie: in the host's memory as NumPy's, or on a GPU as CuPy's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from m2ost_contract import M2OSTError, install_command
from m2ost_preprocess.cuda import import_cupy, try_kernel
from m2ost_preprocess.decoder.gpu import bytes_at
from m2ost_preprocess.decoder.protocol import GpuSlots
from m2ost_preprocess.readers.base import Pixels

_DLPACK_CPU = 1  # kDLCPU of DLPack's DLDeviceType


class DeviceUnavailable(M2OSTError, RuntimeError):
    """A GPU is asked for, and CuPy or the GPU is not there; the message says what to do."""


class Device(Protocol):
    """An array module, and what it takes to bring arrays to where its own lie.

    Attributes
    ----------
    kind : str
        ``cpu`` or ``cuda``, as ONNX Runtime names it.
    index : int
        Which of its kind.
    gpu : int or None
        The same for a GPU; None for the host.
    xp : module
        ``numpy`` or ``cupy``.
    """

    kind: str
    index: int
    gpu: int | None
    xp: ModuleType

    def current(self) -> AbstractContextManager[object]:
        """Make the device the calling thread's while the context lasts; ``xp`` is used inside alone."""

    def join(self, tensors: Sequence[Any]) -> Any:
        """Tensors (DLPack, in any memory) as one C-contiguous array here; a single one that is here is not copied."""

    def copy(self, tensor: Any) -> Any:
        """A tensor (DLPack, in any memory) as a new C-contiguous array here, complete when this returns."""

    def empty(self, shape: tuple[int, ...]) -> Any:
        """A new float32 array here."""

    def pointer(self, array: Any) -> int:
        """Address of an array's first element."""

    def to_host(self, array: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """An array of this device in the host's memory, once all work on it is done."""

    def pin(self, memory: Pixels) -> Callable[[], None]:
        """Have the driver upload straight from this host memory, where it can; returns what undoes it."""

    def upload(self, target: Any, pixels: Any) -> None:
        """Copy pixels to an array of this device, C-contiguous, and return once they have been read."""

    def open_slots(self, slots: GpuSlots) -> list[Any]:
        """A decoder's slots in GPU memory as arrays of bytes."""

    def close_slots(self, arrays: list[Any]) -> None:
        """Give back what :meth:`open_slots` opened."""

    def synchronise(self) -> None:
        """Wait until all work on the arrays is done."""


class HostDevice:
    """The host's memory. Views cut here equal those of a GPU bit by bit."""

    kind = "cpu"
    index = 0
    gpu: int | None = None
    xp: ModuleType = np

    def current(self) -> AbstractContextManager[object]:
        """See :class:`Device`."""
        return nullcontext()

    def join(self, tensors: Sequence[Any]) -> Any:
        """See :class:`Device`."""
        parts = [np.from_dlpack(tensor) for tensor in tensors]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def copy(self, tensor: Any) -> Any:
        """See :class:`Device`."""
        return np.from_dlpack(tensor).copy()

    def empty(self, shape: tuple[int, ...]) -> Any:
        """See :class:`Device`."""
        return np.empty(shape, np.float32)

    def pointer(self, array: Any) -> int:
        """See :class:`Device`."""
        return int(array.ctypes.data)

    def to_host(self, array: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """See :class:`Device`."""
        return np.asarray(array, np.float32)

    def pin(self, memory: Pixels) -> Callable[[], None]:
        """See :class:`Device`."""
        return lambda: None

    def upload(self, target: Any, pixels: Any) -> None:
        """See :class:`Device`."""
        target[...] = pixels

    def open_slots(self, slots: GpuSlots) -> list[Any]:
        """See :class:`Device`."""
        raise DeviceUnavailable("a decoder put pixels on a GPU for views that are cut on the CPU")

    def close_slots(self, arrays: list[Any]) -> None:
        """See :class:`Device`."""

    def synchronise(self) -> None:
        """See :class:`Device`."""


class CudaDevice:
    """One GPU: CuPy arrays, and a stream of its own on which CuPy and whoever uses its arrays work, in order.

    CuPy rather than PyTorch: the server's environment has it for the tiler, and a process costs no 2 GB of GPU memory.

    Parameters
    ----------
    index : int
        The GPU, as Triton numbers it (``model_instance_device_id``).

    Attributes
    ----------
    stream_pointer : int
        The stream, for an engine.
    compute_capability : str
        E.g. ``8.9``.

    Raises
    ------
    DeviceUnavailable
        If there is no CuPy, it finds no such GPU, or cannot compile for it.
    """

    kind = "cuda"

    def __init__(self, index: int) -> None:
        try:
            cupy = import_cupy()
        except ImportError as error:
            raise DeviceUnavailable(
                f"GPU {index} cannot be used: CuPy cannot be imported ({error}); "
                f"run: {install_command('server-gpu')}, or serve with a profile for the CPU"
            ) from error
        self.index, self.xp = index, cupy
        self.gpu: int | None = index
        self._cupy: Any = cupy
        try:
            self._device = cupy.cuda.Device(index)
            with self._device:
                try_kernel(cupy)
                self._stream = cupy.cuda.Stream(non_blocking=True)
                self._copies = cupy.cuda.Stream(non_blocking=True)  # they wait for no run of an engine
                major_minor = str(self._device.compute_capability)
        except Exception as error:
            raise DeviceUnavailable(
                f"GPU {index} cannot be used: {type(error).__name__}: {error}; run: m2ost doctor, or serve with a "
                "profile for the CPU"
            ) from error
        self.stream_pointer = int(self._stream.ptr)
        self.compute_capability = f"{major_minor[:-1]}.{major_minor[-1]}"

    @contextmanager
    def current(self) -> Iterator[None]:
        """See :class:`Device`."""
        with self._device, self._stream:
            yield

    def join(self, tensors: Sequence[Any]) -> Any:
        """See :class:`Device`."""
        with self.current():
            parts = [self._adopt(tensor) for tensor in tensors]
            return parts[0] if len(parts) == 1 else self._cupy.concatenate(parts)

    def copy(self, tensor: Any) -> Any:
        """See :class:`Device`."""
        with self._device, self._copies:
            array = self._cupy.array(self._adopt(tensor), order="C", copy=True)
            self._copies.synchronize()
            return array

    def _adopt(self, tensor: Any) -> Any:
        """A tensor that is on this GPU stays where it is; one in the host's memory, or on another GPU, is copied."""
        kind, index = tensor.__dlpack_device__()
        if kind == _DLPACK_CPU:
            return self._cupy.asarray(np.from_dlpack(tensor))
        with self._cupy.cuda.Device(index):
            array = self._cupy.from_dlpack(tensor)
        return self._cupy.asarray(array)

    def empty(self, shape: tuple[int, ...]) -> Any:
        """See :class:`Device`."""
        with self.current():
            return self._cupy.empty(shape, np.float32)

    def pointer(self, array: Any) -> int:
        """See :class:`Device`."""
        return int(array.data.ptr)

    def to_host(self, array: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """See :class:`Device`."""
        host: np.ndarray[Any, np.dtype[np.float32]] = self._cupy.asnumpy(array, stream=self._stream, blocking=True)
        return host

    def pin(self, memory: Pixels) -> Callable[[], None]:
        """See :class:`Device`. Where the system lets no memory be pinned, uploads take a detour of the driver's."""
        runtime, address = self._cupy.cuda.runtime, memory.ctypes.data
        try:
            runtime.hostRegister(address, memory.nbytes, 0)
        except runtime.CUDARuntimeError:
            return lambda: None
        return lambda: runtime.hostUnregister(address)

    def upload(self, target: Any, pixels: Any) -> None:
        """See :class:`Device`."""
        if isinstance(pixels, np.ndarray):
            target.set(pixels)
        else:
            target[...] = pixels
        self.synchronise()

    def open_slots(self, slots: GpuSlots) -> list[Any]:
        """See :class:`Device`."""
        pointers = [self._cupy.cuda.runtime.ipcOpenMemHandle(handle) for handle in slots.handles]
        return [bytes_at(self._cupy, pointer, slots.slot_bytes, self.index) for pointer in pointers]

    def close_slots(self, arrays: list[Any]) -> None:
        """See :class:`Device`."""
        for array in arrays:
            self._cupy.cuda.runtime.ipcCloseMemHandle(array.data.ptr)

    def synchronise(self) -> None:
        """See :class:`Device`."""
        self._stream.synchronize()
