"""Views of spots as arrays, wherever they are cut: what the model ``slide_tiler`` runs.

Both tilers leave native decoding to a child process and differ in where the views are cut and stay:
:class:`PillowTiler` in that child, :class:`ArrayTiler` in this process, with NumPy or CuPy, from regions that the child
decodes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from m2ost_contract import ENV_TILE_CACHE_MIB, ENV_VIEW_CACHE_MIB, RowStatus, ViewGeometry
from m2ost_preprocess.decoder import Decoder, Decoding
from m2ost_preprocess.decoder.child import Limits
from m2ost_preprocess.decoder.protocol import GpuSlots, Slide, Strip, remember
from m2ost_preprocess.errors import UnsupportedRequest
from m2ost_preprocess.readers.base import Pixels
from m2ost_preprocess.tiling.resample import cut_spots
from m2ost_preprocess.tiling.threads import default_threads
from m2ost_preprocess.tiling.tiles import TilingCounts
from m2ost_preprocess.tiling.views import Centers, Scales, Statuses

from .backlog import ENGINES_PARAMETER
from .devices import CudaDevice, Device, HostDevice

CUT_PARAMETER, DECODE_PARAMETER, THREADS_PARAMETER = "cut", "decode", "threads"
"""Parameters of the config of ``slide_tiler``: where views are cut, where tiles are decoded for them, and the
decoder's helping threads."""

CUTS = ("pillow", "cupy", "numpy")
DECODES = ("auto", "cpu", "gpu")

SPARE_TILE_CACHE_MIB = "64"
VIEW_CACHE_MIB = "256"
"""Of a tiler of several engines: the views of 590 spots, of three views of 224 px."""

OnDecoding = Callable[[Slide, Decoding], None]


class Tiler(Protocol):
    """Cuts the views of spots."""

    geometry: ViewGeometry

    @property
    def kept_bytes(self) -> int:
        """Bytes of decoded tiles and of views that are kept for later spots."""

    def buffers(self, rows: int) -> list[Any]:
        """Black views of that many spots: an array of uint8 a view, each shape (rows, size_px, size_px, 3)."""

    def cut_views(
        self,
        slide: Slide,
        centers: Centers,
        scales: Scales,
        out: list[Any],
        rows: Any,
        counts: TilingCounts,
        *,
        pyramid: bool = False,
        limits: Limits | None = None,
    ) -> Statuses:
        """Cut views into ``out``; see :meth:`m2ost_preprocess.decoder.Decoder.cut_views`."""

    def close(self) -> None:
        """End the child process."""


class PillowTiler:
    """Views cut with Pillow in the process that decodes: the fastest on a CPU.

    Parameters
    ----------
    geometry : ViewGeometry
        The views.
    threads : int, optional
        See :class:`m2ost_preprocess.decoder.Decoder`.
    environment : mapping of str to str, optional
        The same.
    """

    def __init__(
        self, geometry: ViewGeometry, threads: int | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.geometry = geometry
        self._decoder = Decoder(geometry, threads=threads, environment=environment)
        self._decoder.start()

    @property
    def kept_bytes(self) -> int:
        """See :class:`Tiler`."""
        return self._decoder.kept_bytes

    def buffers(self, rows: int) -> list[Any]:
        """See :class:`Tiler`."""
        return [np.zeros((rows, *self.geometry.shape), np.uint8) for _ in self.geometry.names]

    def cut_views(
        self,
        slide: Slide,
        centers: Centers,
        scales: Scales,
        out: list[Any],
        rows: Any,
        counts: TilingCounts,
        *,
        pyramid: bool = False,
        limits: Limits | None = None,
    ) -> Statuses:
        """See :class:`Tiler`."""
        return self._decoder.cut_views(
            slide, centers, scales, out, rows=rows, counts=counts, pyramid=pyramid, limits=limits
        )

    def close(self) -> None:
        """See :class:`Tiler`."""
        self._decoder.close()


class ArrayTiler:
    """Views cut in this process as arrays of NumPy or CuPy, and left there.

    The child decodes into pinned memory that both processes share, a strip at a time, each uploaded once while the next
    is decoded; or on the GPU itself, where that is faster for the slide, into memory that this process opens.

    Parameters
    ----------
    geometry : ViewGeometry
        The views.
    device : Device
        Where views are cut.
    decode : {"auto", "cpu", "gpu"}
        Where tiles are decoded; ``auto`` tries both on each slide's first region.
    threads : int, optional
        See :class:`m2ost_preprocess.decoder.Decoder`.
    environment : mapping of str to str, optional
        The same.
    on_decoding : callable, optional
        Told where a slide's tiles are decoded, and why: once, and whenever that changes.
    """

    def __init__(
        self,
        geometry: ViewGeometry,
        device: Device,
        *,
        decode: str = "auto",
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
        on_decoding: OnDecoding = lambda slide, decoding: None,
    ) -> None:
        self.geometry = geometry
        self._device = device
        self._decode = decode
        self._on_decoding = on_decoding
        self._told: dict[Slide, Decoding] = {}
        self._slots = _Slots(device)
        self._decoder = Decoder(geometry, threads=threads, environment=environment)
        self._decoder.start()
        with device.current():
            self._unpin = device.pin(self._decoder.shared_memory)

    @property
    def kept_bytes(self) -> int:
        """See :class:`Tiler`."""
        return self._decoder.kept_bytes

    def buffers(self, rows: int) -> list[Any]:
        """See :class:`Tiler`."""
        with self._device.current():
            return [self._device.xp.zeros((rows, *self.geometry.shape), np.uint8) for _ in self.geometry.names]

    def cut_views(
        self,
        slide: Slide,
        centers: Centers,
        scales: Scales,
        out: list[Any],
        rows: Any,
        counts: TilingCounts,
        *,
        pyramid: bool = False,
        limits: Limits | None = None,
    ) -> Statuses:
        """See :class:`Tiler`. All work on the views is done when it returns.

        Raises
        ------
        UnsupportedRequest
            If lower levels are asked for: regions of level 0 alone are decoded for this tiler.
        """
        if pyramid:
            raise UnsupportedRequest("views from a slide's lower levels are cut by the profile cpu alone")
        rows = np.arange(len(out[0]))[rows]
        with self._device.current():
            cutter = _Cutter(self._device, self._slots, self.geometry, centers, scales, out, rows)
            statuses, decoding = self._decoder.read_regions(
                slide, centers, scales, cutter, decode=self._decode, gpu=self._device.gpu, counts=counts, limits=limits
            )
            failed = rows[statuses != RowStatus.OK]
            counts.moved_bytes += (len(rows) - len(failed)) * self.geometry.n_views * math.prod(self.geometry.shape)
            for array in out if len(failed) else ():
                array[self._device.xp.asarray(failed)] = 0
            self._device.synchronise()
        if decoding is not None and self._told.get(slide) != decoding:
            remember(self._told, slide, decoding)
            self._on_decoding(slide, decoding)
        return statuses

    def close(self) -> None:
        """See :class:`Tiler`."""
        with self._device.current():
            self._unpin()
            self._slots.close()
        self._decoder.close()


class _Slots:
    """The slots in GPU memory of the decoder that lives now."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._opened: list[Any] = []

    def open(self, slots: GpuSlots) -> None:
        self.close()
        self._opened = self._device.open_slots(slots)

    def pixels(self, strip: Strip) -> Any:
        width = strip.region.width
        return self._opened[strip.slot][: strip.height * width * 3].reshape(strip.height, width, 3)

    def close(self) -> None:
        opened, self._opened = self._opened, []
        self._device.close_slots(opened)


class _Cutter:
    """Assembles the regions of one job and cuts the views of their spots."""

    def __init__(
        self,
        device: Device,
        slots: _Slots,
        geometry: ViewGeometry,
        centers: Centers,
        scales: Scales,
        out: list[Any],
        rows: Any,
    ) -> None:
        self._device, self._slots, self._geometry = device, slots, geometry
        self._centers, self._scales, self._out, self._rows = centers, scales, out, rows
        self._pixels: Any = None

    def open_slots(self, slots: GpuSlots) -> None:
        self._slots.open(slots)

    def take(self, strip: Strip, pixels: Pixels | None) -> None:
        region, xp = strip.region, self._device.xp
        if strip.top == 0:
            self._pixels = xp.empty((region.height, region.width, 3), np.uint8)
        source = self._slots.pixels(strip) if pixels is None else pixels
        self._device.upload(self._pixels[strip.top : strip.top + strip.height], source)
        if strip.last:
            spots, origin = region.rows, (region.left, region.top)
            scale = float(self._scales[spots[0]])
            cut_spots(
                xp, self._pixels, origin, self._centers[spots], scale, self._geometry, self._out, self._rows[spots]
            )
            self._pixels = None


def make_tiler(
    parameters: Mapping[str, str],
    geometry: ViewGeometry,
    gpu: int | None,
    on_decoding: OnDecoding,
    *,
    environment: Mapping[str, str] | None = None,
    spare: bool = False,
) -> Tiler:
    """The tiler that a config asks for.

    Parameters
    ----------
    parameters : mapping of str to str
        Of the model's config; see ``CUT_PARAMETER``, ``DECODE_PARAMETER`` and ``THREADS_PARAMETER``.
    geometry : ViewGeometry
        The views.
    gpu : int or None
        The GPU of the model's instance; None for one on the CPU.
    on_decoding : callable
        Told where a slide's tiles are decoded; see :class:`ArrayTiler`.
    environment : mapping of str to str, optional
        See :class:`m2ost_preprocess.decoder.Decoder`.
    spare : bool
        Whether it helps out beside another one: it has one thread beside the one that reads, and keeps few tiles.

    Returns
    -------
    Tiler

    Raises
    ------
    ValueError
        If a parameter has no such value, or the parameters do not fit the kind of instance.
    DeviceUnavailable
        If views are to be cut on a GPU, and CuPy or the GPU is not there.
    """
    cut, decode = parameters.get(CUT_PARAMETER, "pillow"), parameters.get(DECODE_PARAMETER, "auto")
    for name, value, known in ((CUT_PARAMETER, cut, CUTS), (DECODE_PARAMETER, decode, DECODES)):
        if value not in known:
            raise ValueError(f"parameter {name} of slide_tiler must be one of {', '.join(known)}, not {value!r}")
    threads = thread_count(parameters.get(THREADS_PARAMETER, "all"))
    if (cut == "cupy") != (gpu is not None):
        kind = "KIND_CPU" if gpu is None else "KIND_GPU"
        raise ValueError(f"parameter {CUT_PARAMETER} {cut!r} of slide_tiler does not fit {kind}: cupy needs KIND_GPU")
    environment = dict(environment or {})
    if spare:
        environment[ENV_TILE_CACHE_MIB] = SPARE_TILE_CACHE_MIB
    elif len(json.loads(parameters.get(ENGINES_PARAMETER, "[]"))) > 1:
        environment.setdefault(ENV_VIEW_CACHE_MIB, os.environ.get(ENV_VIEW_CACHE_MIB, VIEW_CACHE_MIB))
    threads = min(threads, 1) if spare else threads
    if cut == "pillow":
        return PillowTiler(geometry, threads, environment)
    device: Device = HostDevice() if gpu is None else CudaDevice(gpu)
    return ArrayTiler(
        geometry, device, decode=decode, threads=threads, environment=environment, on_decoding=on_decoding
    )


def thread_count(given: str) -> int:
    """Threads that a config asks for.

    Parameters
    ----------
    given : str
        A number from 0 on, or ``all``: :func:`m2ost_preprocess.tiling.threads.default_threads`.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if given == "all":
        return default_threads()
    if not given.isdecimal():
        raise ValueError(f"parameter {THREADS_PARAMETER} of slide_tiler must be 0, 1, 2, … or all, not {given!r}")
    return int(given)
