"""The interface of an engine, and the devices that its arrays lie on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from m2ost_contract import SPINNING_PARAMETER, THREADS_PARAMETER, EngineError, ViewGeometry

from ..cuda import import_cupy, try_kernel

KEEP_MEMORY_ROWS = 32
"""On the CPU a run of more rows gives its memory back: a row takes 28 MiB in ONNX Runtime, 13 MiB in OpenVINO, and a
full request has 256."""

_DLPACK_CPU = 1  # kDLCPU of DLPack's DLDeviceType

Expression = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class CpuThreads:
    """Threads of an engine on the CPU.

    Parameters
    ----------
    count : int
        How many; by default one for each core of this process's CPU set.
    spinning : bool
        Whether they spin while they wait, where the runtime can be told (ONNX Runtime).
    """

    count: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    spinning: bool = False

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> CpuThreads:
        """As a config asks for.

        Raises
        ------
        EngineError
            If a parameter has no such value.
        """
        count, spinning = parameters.get(THREADS_PARAMETER, "all"), parameters.get(SPINNING_PARAMETER, "0")
        if count != "all" and not (count.isdecimal() and int(count)):
            raise EngineError(f"the config's parameter {THREADS_PARAMETER!r} is {count!r}, not 1, 2, … or all")
        if spinning not in ("0", "1"):
            raise EngineError(f"the config's parameter {SPINNING_PARAMETER!r} is {spinning!r}, not 0 or 1")
        chosen = {} if count == "all" else {"count": int(count)}
        return cls(**chosen, spinning=spinning == "1")


class Device(Protocol):
    """Where an engine's arrays lie.

    Attributes
    ----------
    kind : str
        ``cpu`` or ``cuda``, as ONNX Runtime names it.
    index : int
        Which of its kind.
    """

    kind: str
    index: int

    def join(self, tensors: Sequence[Any]) -> Any:
        """Tensors (DLPack, in any memory) as one C-contiguous array on this device; a single one here is not copied."""

    def copy(self, tensor: Any) -> Any:
        """A tensor (DLPack, in any memory) as a new C-contiguous array on this device, complete when this returns."""

    def empty(self, shape: tuple[int, ...]) -> Any:
        """A new float32 array on this device."""

    def pointer(self, array: Any) -> int:
        """Address of an array's first element."""

    def to_host(self, array: Any) -> Expression:
        """An array of this device in the host's memory, once all work on it is done."""


class HostDevice:
    """The host's memory: NumPy arrays."""

    kind = "cpu"
    index = 0

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

    def to_host(self, array: Any) -> Expression:
        """See :class:`Device`."""
        return np.asarray(array, np.float32)


class CudaDevice:
    """One GPU: CuPy arrays, and a stream of its own on which both CuPy and the engine work, in order.

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
    EngineError
        If there is no CuPy, it finds no such GPU, or cannot compile for it.
    """

    kind = "cuda"

    def __init__(self, index: int) -> None:
        try:
            cupy = import_cupy()
        except ImportError as error:
            raise EngineError(f"no CuPy ({error}); run: pip install 'm2ost-triton[server-gpu]'") from error
        self.index = index
        self._cupy = cupy
        try:
            self._device = cupy.cuda.Device(index)
            self._device.use()
            try_kernel(cupy)
            self._stream = cupy.cuda.Stream(non_blocking=True)
            major_minor = str(self._device.compute_capability)
        except Exception as error:
            raise EngineError(
                f"GPU {index} cannot be used: {type(error).__name__}: {error}; run: m2ost doctor"
            ) from error
        self.stream_pointer = int(self._stream.ptr)
        self.compute_capability = f"{major_minor[:-1]}.{major_minor[-1]}"

    def join(self, tensors: Sequence[Any]) -> Any:
        """See :class:`Device`."""
        with self._device, self._stream:
            parts = [self._adopt(tensor) for tensor in tensors]
            return parts[0] if len(parts) == 1 else self._cupy.concatenate(parts)

    def copy(self, tensor: Any) -> Any:
        """See :class:`Device`."""
        with self._device, self._stream:
            array = self._cupy.array(self._adopt(tensor), order="C", copy=True)
            self._stream.synchronize()
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
        with self._device, self._stream:
            return self._cupy.empty(shape, np.float32)

    def pointer(self, array: Any) -> int:
        """See :class:`Device`."""
        return int(array.data.ptr)

    def to_host(self, array: Any) -> Expression:
        """See :class:`Device`."""
        host: Expression = self._cupy.asnumpy(array, stream=self._stream, blocking=True)
        return host


class Engine(Protocol):
    """A network that is ready to run.

    Attributes
    ----------
    device : Device
        Where it takes its batches.
    description : str
        Runtime, its version and device, for the log.
    """

    device: Device
    description: str

    def run(self, batch: Mapping[str, Any]) -> Expression:
        """Score spots.

        Parameters
        ----------
        batch : mapping of str to array of uint8, each shape (n, size_px, size_px, 3)
            Every view by its name, on ``device``, C-contiguous.

        Returns
        -------
        ndarray of float32, shape (n, G)
            In the host's memory: at 1 KB a spot the only thing that leaves the GPU.

        Raises
        ------
        ValueError
            If the batch is not of this form, or has more rows than the engine takes.
        """


def check_batch(batch: Mapping[str, Any], geometry: ViewGeometry, max_rows: int) -> int:
    """The number of rows of a batch.

    Engines take addresses, behind which an array of another form would be read as if it had this one.

    Raises
    ------
    ValueError
        If a view is missing, not uint8, of another shape, not contiguous, or there are more than ``max_rows`` rows.
    """
    if set(batch) != set(geometry.names):
        raise ValueError(f"the engine takes {', '.join(geometry.names)}, not {', '.join(batch)}")
    rows = len(batch[geometry.names[0]])
    for name, array in batch.items():
        if array.shape != (rows, *geometry.shape) or array.dtype != np.uint8 or not array.flags.c_contiguous:
            raise ValueError(
                f"{name}: expected a contiguous uint8 array of shape {(rows, *geometry.shape)}, "
                f"not {array.dtype} {array.shape}"
            )
    if not 0 < rows <= max_rows:
        raise ValueError(f"{rows} rows in a batch; this engine takes 1 to {max_rows}")
    return rows
