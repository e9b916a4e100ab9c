"""Decoding on a GPU, in the child: cuCIM's decoder, slots in GPU memory, and whether they pay for a slide.

A CUDA error ends with the process that it happened in, and so does a decoder's crash: hence in the child.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import UnreadableSlide
from ..readers import SlideReader
from ..views import Region
from .protocol import SLOTS, Decoding, GpuSlots

TRIAL_PX = 2048
"""Longest side of the rectangle that both decoders are tried on, in level-0 pixels."""

TRIALS = 3
"""Times that each is tried after a first one that is not counted; the fastest counts."""

MAX_DIFF = 1
"""Grey levels by which a GPU's decoder may differ from the CPU's."""


class GpuMemory:
    """Slots in GPU memory that the parent process can open.

    Parameters
    ----------
    gpu : int
        The GPU.
    slot_bytes : int
        Size of each slot.
    """

    on_gpu = True

    def __init__(self, gpu: int, slot_bytes: int) -> None:
        self._cupy = _cupy(gpu)
        self.slot_bytes = slot_bytes
        runtime = self._cupy.cuda.runtime
        # cudaMalloc: memory of CuPy's pool may share an allocation, which is what a handle stands for.
        pointers = [runtime.malloc(slot_bytes) for _ in range(SLOTS)]
        self.slots = GpuSlots(tuple(runtime.ipcGetMemHandle(pointer) for pointer in pointers), slot_bytes)
        self._arrays = [bytes_at(self._cupy, pointer, slot_bytes, gpu) for pointer in pointers]

    def fill(self, slot: int, reader: SlideReader, region: Region, top: int, height: int) -> None:
        """Read rows ``top`` … ``top + height`` of a region into a slot, and wait until they are there.

        Parameters
        ----------
        slot : int
            Which slot.
        reader : SlideReader
            The slide.
        region : Region
            The region.
        top, height : int
            In rows of the region.

        Raises
        ------
        UnreadableSlide
            If they cannot be decoded.
        """
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
    """Level-0 pixels of any rectangle, decoded on a GPU; black outside the slide.

    Parameters
    ----------
    xp : module
        CuPy.
    reader : SlideReader
        One that decodes on a GPU.
    left, top, width, height : int
        The rectangle in level-0 pixels.

    Returns
    -------
    array of uint8, shape (height, width, 3)

    Raises
    ------
    UnreadableSlide
        If they cannot be decoded.
    """
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, reader.size[0]), min(top + height, reader.size[1])
    out = xp.zeros((height, width, 3), np.uint8)
    if x1 > x0 and y1 > y0:
        pixels = xp.asarray(reader.read_on_gpu(x0, y0, x1 - x0, y1 - y0))
        out[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[..., :3]
    return out


def choose_decoding(reader: SlideReader, region: Region, mode: str, gpu: int | None) -> Decoding:
    """Where a slide's tiles are decoded. Unless it is pinned, both ways are tried on the slide's own tiles.

    Parameters
    ----------
    reader : SlideReader
        The slide.
    region : Region
        The first region that is wanted of it.
    mode : {"auto", "cpu", "gpu"}
        The config's choice.
    gpu : int or None
        The GPU; None where views are cut on the CPU.

    Returns
    -------
    Decoding

    Raises
    ------
    UnreadableSlide
        If the GPU is insisted on and cannot decode this slide.
    """
    if mode == "cpu":
        return Decoding("cpu", "the config says so")
    obstacle = None
    if gpu is None:
        obstacle = "views are cut on the CPU"
    elif not reader.decodes_on_gpu:
        obstacle = f"{reader.name} has no decoder for GPUs"
    if obstacle is None:
        assert gpu is not None
        try:
            cupy = _cupy(gpu)
            left, top, width, height = _trial_rectangle(reader, region)
            on_cpu = cupy.asarray(reader.read_padded(left, top, width, height)).astype(np.int16)
            on_gpu = read_padded_on_gpu(cupy, reader, left, top, width, height).astype(np.int16)
            difference = int(abs(on_cpu - on_gpu).max())
            synchronise = cupy.cuda.get_current_stream().synchronize
            cpu_s = _fastest(lambda: cupy.asarray(reader.read_padded(left, top, width, height)), synchronise)
            gpu_s = _fastest(lambda: read_padded_on_gpu(cupy, reader, left, top, width, height), synchronise)
            return decide(mode, cpu_s, gpu_s, difference)
        except Exception as error:  # CuPy's and cuCIM's errors have no common base
            obstacle = f"decoding on GPU {gpu} failed: {type(error).__name__}: {error}"
    if mode == "gpu":
        raise UnreadableSlide(
            reader.path.name, f"the config insists on decoding on the GPU, but {obstacle}; set decode to auto or cpu"
        )
    return Decoding("cpu", obstacle)


def decide(mode: str, cpu_s: float, gpu_s: float, max_abs_diff: int) -> Decoding:
    """Choose between two decoders that were tried.

    Parameters
    ----------
    mode : {"auto", "gpu"}
        The config's choice.
    cpu_s, gpu_s : float
        Seconds for the same pixels, ready on the GPU.
    max_abs_diff : int
        Largest difference between the two in grey levels.

    Returns
    -------
    Decoding
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
    import cupy

    cupy.cuda.Device(gpu).use()
    return cupy


def _trial_rectangle(reader: SlideReader, region: Region) -> tuple[int, int, int, int]:
    left, top = max(region.left, 0), max(region.top, 0)
    width = min(region.left + region.width, reader.size[0], left + TRIAL_PX) - left
    height = min(region.top + region.height, reader.size[1], top + TRIAL_PX) - top
    return left, top, width, height


def _fastest(run: Callable[[], object], synchronise: Callable[[], None]) -> float:
    seconds = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        run()
        synchronise()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
