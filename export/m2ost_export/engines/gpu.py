"""The NVIDIA GPUs of this machine, asked of the driver itself: no CUDA toolkit and no package is needed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import EngineBuildError

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the driver's interface."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Parameters
    ----------
    name : str
        E.g. ``NVIDIA L4``.
    compute_capability : str
        E.g. ``8.9``.
    ordinal : int
        The driver's number of it.
    """

    name: str
    compute_capability: str
    ordinal: int = 0


@dataclass(frozen=True)
class Driver:
    """The CUDA driver and the GPUs that it lets this process use.

    Parameters
    ----------
    cuda_version : str
        Newest CUDA that it runs, e.g. ``13.0``; empty without a driver.
    gpus : tuple of Gpu
        In the driver's order; none without a driver.
    """

    cuda_version: str = ""
    gpus: tuple[Gpu, ...] = ()

    def gpu_with(self, compute_capability: str) -> Gpu | None:
        """The first GPU of a compute capability."""
        return next((gpu for gpu in self.gpus if gpu.compute_capability == compute_capability), None)


def find_driver() -> Driver:
    """Ask the driver. Without one, or where it does not start, the answer has no GPUs."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver()
    version, count = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDriverGetVersion(ctypes.byref(version)) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return Driver()
    gpus = []
    for ordinal in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(256)
        failed = (
            cuda.cuDeviceGet(ctypes.byref(device), ordinal)
            or cuda.cuDeviceGetName(name, len(name), device)
            or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
            or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        )
        if not failed:
            gpus.append(Gpu(name.value.decode(), f"{major.value}.{minor.value}", ordinal))
    return Driver(f"{version.value // 1000}.{version.value % 1000 // 10}", tuple(gpus))


@contextmanager
def current(gpu: Gpu) -> Iterator[None]:
    """Make a GPU the calling thread's: TensorRT builds for that one, and loads engines there.

    Raises
    ------
    EngineBuildError
        If the driver refuses it.
    """
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    failed = (
        cuda.cuDeviceGet(ctypes.byref(device), gpu.ordinal)
        or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        or cuda.cuCtxPushCurrent_v2(context)
    )
    if failed:
        raise EngineBuildError(f"GPU {gpu.ordinal}, {gpu.name}, cannot be used: CUDA error {failed}; see nvidia-smi")
    try:
        yield
    finally:
        cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
        cuda.cuDevicePrimaryCtxRelease_v2(device)
