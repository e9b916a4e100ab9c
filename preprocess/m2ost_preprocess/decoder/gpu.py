"""Decoding on a GPU, in the child: cuCIM's decoder, slots in GPU memory, and whether they pay for a slide.

A CUDA error stays with the process that it happened in until that ends, and a decoder's crash ends it: hence in the
child, which the parent replaces.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..cuda import import_cupy
from ..errors import UnsupportedRequest
from ..readers import SlideReader
from ..tiling.tiles import CachedReader
from ..tiling.views import Region
from .protocol import SLOTS, Decoding, GpuSlots

TRIAL_PX = 2048
"""Longest side of the rectangle that both decoders are tried on, in level-0 pixels."""

TRIALS = 3
"""Times that each is tried after a first one that is not counted; the fastest counts."""

MAX_DIFF = 1
"""Grey levels by which a GPU's decoder may differ from the CPU's."""


class GpuMemory:
    """Slots in GPU memory, of ``slot_bytes`` each, that the parent process can open.

    Raises what CuPy does, which has no common base, where there is not so much memory or it cannot be shared.
    """

    on_gpu = True

    def __init__(self, gpu: int, slot_bytes: int) -> None:
        self._cupy = _cupy(gpu)
        self.slot_bytes = slot_bytes
        runtime = self._cupy.cuda.runtime
        # cudaMalloc: memory of CuPy's pool may share an allocation, which is what a handle stands for.
        pointers: list[int] = []
        try:
            pointers += (runtime.malloc(slot_bytes) for _ in range(SLOTS))
            self.slots = GpuSlots(tuple(runtime.ipcGetMemHandle(pointer) for pointer in pointers), slot_bytes)
        except BaseException:
            for pointer in pointers:
                runtime.free(pointer)
            raise
        self._arrays = [bytes_at(self._cupy, pointer, slot_bytes, gpu) for pointer in pointers]

    def fill(self, slot: int, reader: SlideReader, region: Region, top: int, height: int) -> None:
        """Read rows ``top`` … ``top + height`` of a region into a slot, and wait until they are there."""
        pixels = self._arrays[slot][: height * region.width * 3].reshape(height, region.width, 3)
        pixels[:] = read_padded_on_gpu(self._cupy, reader, region.left, region.top + top, region.width, height)
        self._cupy.cuda.get_current_stream().synchronize()


def bytes_at(cupy: Any, pointer: int, size: int, gpu: int) -> Any:
    """GPU memory that CuPy does not own, as an array of bytes.

    Parameters
    ----------
    cupy : module
    pointer, size : int
        The memory.
    gpu : int
        Where it is.

    Returns
    -------
    cupy.ndarray of uint8, shape (size,)
    """
    memory = cupy.cuda.UnownedMemory(pointer, size, owner=None, device_id=gpu)
    return cupy.ndarray((size,), np.uint8, cupy.cuda.MemoryPointer(memory, 0))


def read_padded_on_gpu(xp: Any, reader: SlideReader, left: int, top: int, width: int, height: int) -> Any:
    """Level-0 pixels of any rectangle, decoded on a GPU: (height, width, 3), uint8, black outside the slide."""
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, reader.size[0]), min(top + height, reader.size[1])
    out = xp.zeros((height, width, 3), np.uint8)
    if x1 > x0 and y1 > y0:
        pixels = xp.asarray(reader.read_on_gpu(x0, y0, x1 - x0, y1 - y0))
        out[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[..., :3]
    return out


def is_cuda_error(error: Exception) -> bool:
    """Whether CUDA failed under CuPy: nothing may work on the GPU any more until this process has ended."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(error, cupy.cuda.runtime.CUDARuntimeError)


def choose_decoding(reader: CachedReader, region: Region, mode: str, gpu: int | None) -> Decoding:
    """Where a slide's tiles are decoded. Unless it is pinned, both ways are tried on the slide's own tiles.

    ``region`` is the first that is wanted of it; ``gpu`` is None where views are cut on the CPU. Raises
    ``UnsupportedRequest`` where the GPU is insisted on and cannot decode this slide.
    """
    if mode == "cpu":
        return Decoding("cpu", "the config says so")
    obstacle = None
    if gpu is None:
        obstacle = "views are cut on the CPU"
    elif not reader.decodes_on_gpu:
        obstacle = f"{reader.name} has no decoder for GPUs of such tiles"
    if obstacle is None:
        assert gpu is not None
        try:
            cupy = _cupy(gpu)
            left, top, width, height = _trial_rectangle(reader, region)
            windows = region.windows

            def by_gpu() -> Any:
                return read_padded_on_gpu(cupy, reader.uncached, left, top, width, height)

            # Signed: the difference of two bytes may be negative. These first reads are not timed.
            on_cpu = cupy.asarray(reader.uncached.read_padded(left, top, width, height)).astype(np.int16)
            difference = int(abs(on_cpu - by_gpu().astype(np.int16)).max())
            synchronise = cupy.cuda.get_current_stream().synchronize
            # The CPU is tried as it will work: all its threads, on the tiles that are needed. A cold reader keeps none
            # of them from one trial to the next.
            cpu_s = _fastest(
                lambda: cupy.asarray(reader.cold().read_padded(left, top, width, height, windows=windows)), synchronise
            )
            return decide(mode, cpu_s, _fastest(by_gpu, synchronise), difference)
        except Exception as error:  # CuPy's and cuCIM's errors have no common base
            obstacle = f"decoding on GPU {gpu} failed: {type(error).__name__}: {error}"
    return on_cpu_for(obstacle, reader, mode)


def on_cpu_for(obstacle: str, reader: SlideReader, mode: str) -> Decoding:
    """The CPU, as a GPU cannot decode a slide for that obstacle; ``UnsupportedRequest`` where ``mode`` is ``gpu``."""
    if mode == "gpu":
        raise UnsupportedRequest(
            f"{reader.path.name}: the config insists on decoding on the GPU, but {obstacle}; set decode to auto or cpu"
        )
    return Decoding("cpu", obstacle)


def decide(mode: str, cpu_s: float, gpu_s: float, max_abs_diff: int) -> Decoding:
    """Choose between two decoders that were tried.

    They took ``cpu_s`` and ``gpu_s`` seconds for the same pixels, ready on the GPU, and differ by ``max_abs_diff`` grey
    levels at most. ``mode``: ``auto`` or ``gpu``.
    """

    def choose(device: str, reason: str) -> Decoding:
        return Decoding(device, reason, cpu_s, gpu_s, max_abs_diff)

    if mode == "gpu":
        return choose("gpu", "the config says so")
    if max_abs_diff > MAX_DIFF:
        return choose("cpu", f"the GPU's decoder differs by {max_abs_diff} grey levels, {MAX_DIFF} may")
    if gpu_s < cpu_s:
        return choose("gpu", f"{cpu_s / gpu_s:.2f} times as fast")
    return choose("cpu", f"{gpu_s / cpu_s:.2f} times as fast, upload included")


def _cupy(gpu: int) -> Any:
    cupy = import_cupy()
    cupy.cuda.Device(gpu).use()
    return cupy


def _trial_rectangle(reader: SlideReader, region: Region) -> tuple[int, int, int, int]:
    left, top = max(region.left, 0), max(region.top, 0)
    width = min(region.left + region.width, reader.size[0], left + TRIAL_PX) - left
    height = min(region.top + region.height, reader.size[1], top + TRIAL_PX) - top
    return left, top, width, height


def _fastest(run: Callable[[], object], synchronise: Callable[[], None]) -> float:
    seconds = []
    # A GPU works on after the call returns: the clock waits for it.
    for _ in range(TRIALS):
        began = time.perf_counter()
        run()
        synchronise()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
