"""The parent's end of a decoder."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from m2ost_contract import ENV_READER, MAX_ROWS, READERS, ViewGeometry

from ..readers.base import Pixels
from ..slides import RootedSlide
from ..tiling.threads import default_threads
from ..tiling.tiles import TilingCounts
from ..tiling.views import Centers, Scales, Statuses
from .child import STALL_S, Child, ChildCrashed, ChildLost, Limits
from .control import Control, new_control
from .protocol import (
    Acknowledged,
    CutViews,
    Decoding,
    Describe,
    Fingerprint,
    GpuSlots,
    Job,
    MakeThumbnail,
    Open,
    Opened,
    ReadRectangle,
    ReadRegions,
    RegionsRead,
    SlideInfo,
    Strip,
    ViewsCut,
    buffer_bytes,
    rectangle_array,
    remember,
    strip_array,
    view_arrays,
)

CUT_TIMEOUT_S = 600.0
"""Longest time for cutting views once, in seconds. A decoder that hangs is stopped much sooner: see ``STALL_S``."""

DESCRIBE_TIMEOUT_S = 300.0
"""The same for describing a slide, which may decode all of it."""

Slide = Path | RootedSlide
"""A slide's file, already resolved; or the slide of a request, whose files the child looks for under its root."""

Answer = TypeVar("Answer")


class RegionReceiver(Protocol):
    """Takes the pixels of regions as they come out of a decoder."""

    def open_slots(self, slots: GpuSlots) -> None:
        """Make the child's slots in GPU memory readable here; those of an earlier child are gone."""

    def take(self, strip: Strip, pixels: Pixels | None) -> None:
        """Take a strip: ``pixels`` (height, width, 3), which are overwritten afterwards, or None for one on the GPU."""


class Decoder:
    """Decodes slides in a child process; thread-safe, one job at a time.

    A child that dies is an :class:`UnreadableSlide` for the slide it was reading; the next job starts a new one. One
    that a native library ends is replaced at once, and the slide read without cuCIM, now and from then on.

    Parameters
    ----------
    geometry : ViewGeometry, optional
        Views that :meth:`cut_views` will be asked for; sizes the shared buffer.
    timeout_s : float
        Longest time for cutting views once in seconds.
    describe_timeout_s : float
        Longest time for describing a slide in seconds.
    stall_s : float
        Longest time without any progress in seconds.
    threads : int, optional
        Threads of the child that read and cut along, beside the one that reads; by default one for each core. 0: that
        one does all.
    reader : {"auto", "cucim", "openslide", "image"}, optional
        Who is to read slides; by default what the environment variable ``M2OST_READER`` says, else ``auto``. See
        :func:`m2ost_preprocess.readers.open_slide`.
    without : tuple of str
        Readers that ``auto`` passes over.
    environment : mapping of str to str, optional
        Variables of the child's environment, in place of this process's: settings of the tile cache and the trace.

    Raises
    ------
    ValueError
        If there is no such reader.
    """

    def __init__(
        self,
        geometry: ViewGeometry | None = None,
        *,
        reader: str | None = None,
        without: tuple[str, ...] = (),
        timeout_s: float = CUT_TIMEOUT_S,
        describe_timeout_s: float = DESCRIBE_TIMEOUT_S,
        stall_s: float = STALL_S,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.geometry = geometry or ViewGeometry()
        self._cutting = Limits(timeout_s, stall_s)
        self._describing = Limits(describe_timeout_s, stall_s)
        self._lock = threading.Lock()
        self._closed = False
        self._reader = os.environ.get(ENV_READER, "auto") if reader is None else reader
        if self._reader not in READERS:
            raise ValueError(f"the reader of slides must be one of {', '.join(READERS)}, not {self._reader!r}")
        self._lost: dict[Slide, str] = {}
        self._without = without
        self._crashed: dict[Slide, tuple[str, ...]] = {}
        size = buffer_bytes(self.geometry, MAX_ROWS)
        self._buffer_fd = os.memfd_create("m2ost-views")
        os.ftruncate(self._buffer_fd, size)
        self._buffer_bytes = size
        self._buffer = mmap.mmap(self._buffer_fd, size)
        self._control_fd = new_control()
        self._control = Control(self._control_fd)
        threads = default_threads() if threads is None else threads
        self._child = Child(self._buffer_fd, self._control_fd, self._control, threads, environment or {})

    @property
    def shared_memory(self) -> Pixels:
        """The memory that pixels come through, shape (bytes,): for a driver to pin. Not to be kept beyond the decoder.

        Returns
        -------
        ndarray of uint8
        """
        return np.frombuffer(self._buffer, np.uint8)

    @property
    def pid(self) -> int | None:
        """Process id of the living child.

        Returns
        -------
        int or None
            None where no child lives.
        """
        return self._child.pid

    def start(self) -> None:
        """Start the child if none is alive, so that the first job need not.

        Raises
        ------
        RuntimeError
            If the decoder is closed.
        OSError
            If the system grants no process.
        """
        with self._lock:
            self._check_open()
            self._child.start()

    def describe(
        self,
        slide: Slide,
        *,
        pitch_um: float | None = None,
        mpp: float | None = None,
        limits: Limits | None = None,
    ) -> SlideInfo:
        """Describe a slide.

        Parameters
        ----------
        slide : Path or RootedSlide
            The slide's file, already resolved; or the slide of a request.
        pitch_um : float, optional
            Asks for a spot grid with this distance between spots in µm.
        mpp : float, optional
            µm per level-0 pixel, in place of the slide's own.
        limits : Limits, optional
            In place of the decoder's own.

        Returns
        -------
        SlideInfo

        Raises
        ------
        SlideError
            If the slide cannot be read, or a pitch in µm is asked for and µm/px or the tissue cannot be told.
        SpotError
            If the pitch gives no usable grid.
        RuntimeError
            If the decoder is closed.
        """
        with self._lock:
            info: SlideInfo = self._ask(Describe(slide=slide, pitch_um=pitch_um, mpp=mpp), limits or self._describing)
        return info

    def fingerprint(self, slide: Slide, *, limits: Limits | None = None) -> str:
        """Identify a slide's content; see :func:`m2ost_preprocess.slides.fingerprint`.

        Parameters
        ----------
        slide : Path or RootedSlide
            The slide's file, already resolved; or the slide of a request.
        limits : Limits, optional
            In place of the decoder's own.

        Returns
        -------
        str
            64 hexadecimal digits.

        Raises
        ------
        SlideError
            If a file of it cannot be read.
        RuntimeError
            If the decoder is closed.
        """
        with self._lock:
            digits: str = self._ask(Fingerprint(slide=slide), limits or self._describing)
        return digits

    def open(self, slide: Slide) -> Opened:
        """Open a slide.

        Parameters
        ----------
        slide : Path or RootedSlide
            The slide's file, already resolved; or the slide of a request.

        Returns
        -------
        Opened

        Raises
        ------
        SlideError
            If the slide cannot be opened.
        RuntimeError
            If the decoder is closed.
        """
        with self._lock:
            opened: Opened = self._ask(Open(slide=slide), self._describing)
        return opened

    def thumbnail(self, slide: Slide, max_px: int) -> Pixels:
        """Make a whole slide small; see :meth:`m2ost_preprocess.readers.SlideReader.thumbnail`.

        Parameters
        ----------
        slide : Path or RootedSlide
            The slide's file, already resolved; or the slide of a request.
        max_px : int
            Most pixels of the longer side.

        Returns
        -------
        ndarray of uint8, shape (height, width, 3)
            RGB.

        Raises
        ------
        SlideError
            If the slide cannot be decoded.
        RuntimeError
            If the decoder is closed.
        """
        with self._lock:
            pixels: Pixels = self._ask(MakeThumbnail(slide=slide, max_px=max_px), self._describing)
        return pixels

    def cut_views(
        self,
        slide: Slide,
        centers: Centers,
        scales: Scales,
        out: Sequence[Pixels],
        rows: Any = slice(None),
        counts: TilingCounts | None = None,
        *,
        pyramid: bool = False,
        limits: Limits | None = None,
    ) -> Statuses:
        """Cut the views of up to 256 spots; see :func:`m2ost_preprocess.tiling.views.cut_views`.

        Parameters
        ----------
        slide : Path or RootedSlide
            The slide's file, already resolved; or the slide of a request.
        centers : ndarray of int32, shape (n, 2)
            x, y: floor of the spot's centre in level-0 pixels.
        scales : ndarray of float32, shape (n,)
            Level-0 pixels per view pixel of the finest view.
        out : sequence of ndarray of uint8, each shape (rows, size_px, size_px, 3)
            Receives one array a view, RGB; rows whose status is not OK become black.
        rows : index of the first axis of ``out``
            Which rows of ``out`` receive the views, in the order of ``centers``.
        counts : TilingCounts, optional
            Added to.
        pyramid : bool
            Whether coarse views may come from the slide's own lower levels.
        limits : Limits, optional
            In place of the decoder's own. Rows that nobody waits for any more are left out: their views are black, and
            their status is that of a row whose slide is not available.

        Returns
        -------
        ndarray of int32, shape (n,)
            A ``RowStatus`` a row.

        Raises
        ------
        SlideError
            If the slide cannot be opened or the child died on it.
        ValueError
            If there are more than 256 spots.
        RuntimeError
            If the decoder is closed.
        """
        if len(centers) > MAX_ROWS:
            raise ValueError(f"{len(centers)} spots in one job; at most {MAX_ROWS}")
        with self._lock:
            job = CutViews(slide=slide, centers=centers, scales=scales, geometry=self.geometry, pyramid=pyramid)
            answer: ViewsCut = self._ask(job, limits or self._cutting)
            for target, source in zip(out, view_arrays(self._buffer, self.geometry, len(centers)), strict=True):
                target[rows] = source
        if counts is not None:
            counts += answer.counts
        return answer.statuses

    def read_regions(
        self,
        slide: Slide,
        centers: Centers,
        scales: Scales,
        receiver: RegionReceiver,
        *,
        decode: str = "cpu",
        gpu: int | None = None,
        counts: TilingCounts | None = None,
        limits: Limits | None = None,
    ) -> tuple[Statuses, Decoding | None]:
        """Read the regions around up to 256 spots; the child reads the next strip while the last one is taken.

        A slide on which the child is lost while it may choose a GPU is read again, and from then on, by the CPU: a
        decoder for GPUs takes its process with it where one for CPUs gives an error.

        Parameters
        ----------
        slide : Path or RootedSlide
            The slide's file, already resolved; or the slide of a request.
        centers : ndarray of int32, shape (n, 2)
            x, y: floor of the spot's centre in level-0 pixels.
        scales : ndarray of float32, shape (n,)
            Level-0 pixels per view pixel of the finest view.
        receiver : RegionReceiver
            Takes the pixels. What it raises ends the child and is passed on.
        decode : {"auto", "cpu", "gpu"}
            Where tiles are decoded.
        gpu : int, optional
            The GPU that the receiver works on.
        counts : TilingCounts, optional
            Added to.
        limits : Limits, optional
            As of :meth:`cut_views`.

        Returns
        -------
        statuses : ndarray of int32, shape (n,)
            A ``RowStatus`` a row. The regions of rows that are not OK have not come whole.
        decoding : Decoding or None
            Where the tiles were decoded; None where none was needed.

        Raises
        ------
        SlideError
            If the slide cannot be opened, or the child died.
        UnsupportedRequest
            If the slide cannot be decoded on a GPU that ``decode`` insists on.
        ValueError
            If there are more than 256 spots.
        RuntimeError
            If the decoder is closed.
        """
        if len(centers) > MAX_ROWS:
            raise ValueError(f"{len(centers)} spots in one job; at most {MAX_ROWS}")
        job = ReadRegions(slide=slide, centers=centers, scales=scales, geometry=self.geometry, decode=decode, gpu=gpu)
        with self._lock:
            answer = self._read_regions(job, receiver, limits or self._cutting)
        if counts is not None:
            counts += answer.counts
        return answer.statuses, answer.decoding

    def _read_regions(self, job: ReadRegions, receiver: RegionReceiver, limits: Limits) -> RegionsRead:
        slide = job.slide

        def receive(decode: str) -> RegionsRead:
            return self._receive(replace(job, decode=decode), receiver, limits)

        if job.decode == "cpu" or job.gpu is None:
            return self._surviving(slide, lambda: receive(job.decode))
        if job.decode == "gpu":
            return receive("gpu")
        if slide not in self._lost:
            try:
                return receive("auto")
            except ChildLost as error:
                remember(self._lost, slide, f"where the GPU may decode, {error.message}")
        answer = self._surviving(slide, lambda: receive("cpu"))
        decoding = answer.decoding and replace(answer.decoding, reason=self._lost[slide])
        return replace(answer, decoding=decoding)

    def _receive(self, job: ReadRegions, receiver: RegionReceiver, limits: Limits) -> RegionsRead:
        limits = limits.begun()
        answer: Strip | GpuSlots | RegionsRead = self._ask_once(job, limits)
        while not isinstance(answer, RegionsRead):
            try:
                self._hand_over(answer, receiver)
            except BaseException:
                self._child.stop()  # in the middle of its job
                raise
            answer = self._child.ask(Acknowledged(), job.slide.name, limits)
        return answer

    def read(self, slide: Slide, left: int, top: int, width: int, height: int) -> Pixels:
        """Read level-0 pixels of a rectangle inside a slide, in as many jobs as the shared buffer makes of it.

        Parameters
        ----------
        slide : Path or RootedSlide
            The slide's file, already resolved; or the slide of a request.
        left, top, width, height : int
            The rectangle in level-0 pixels.

        Returns
        -------
        ndarray of uint8, shape (height, width, 3)
            RGB.

        Raises
        ------
        SlideError
            If they cannot be decoded, or the child died on them.
        ValueError
            If one row of them is larger than the buffer.
        RuntimeError
            If the decoder is closed.
        """
        rows = self._buffer_bytes // (3 * width)
        if rows < 1:
            raise ValueError(f"a row of {width} px does not fit into the buffer of {self._buffer_bytes} bytes")
        out = np.empty((height, width, 3), np.uint8)
        for first in range(0, height, rows):
            count = min(rows, height - first)
            with self._lock:
                job = ReadRectangle(slide=slide, left=left, top=top + first, width=width, height=count)
                self._ask(job, self._cutting)
                out[first : first + count] = rectangle_array(self._buffer, width, count)
        return out

    def _hand_over(self, answer: Strip | GpuSlots, receiver: RegionReceiver) -> None:
        if isinstance(answer, GpuSlots):
            receiver.open_slots(answer)
        elif answer.on_gpu:
            receiver.take(answer, None)
        else:
            receiver.take(answer, strip_array(self._buffer, answer.slot, answer.height, answer.region.width))

    def close(self) -> None:
        """End the child and free the buffer, after the jobs under way; later ones raise ``RuntimeError``."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._child.stop()
                del self._buffer  # unmapped with the last view of it, which a traceback may hold
                os.close(self._buffer_fd)
                self._control.close()
                os.close(self._control_fd)

    def _ask(self, job: Job, limits: Limits) -> Any:
        return self._surviving(job.slide, lambda: self._ask_once(job, limits))

    def _ask_once(self, job: Job, limits: Limits) -> Any:
        self._check_open()
        self._child.start()
        self._control.reset()
        without = (*self._without, *self._crashed.get(job.slide, ()))
        return self._child.ask(replace(job, reader=self._reader, without=without), job.slide.name, limits)

    def _surviving(self, slide: Slide, ask: Callable[[], Answer]) -> Answer:
        """Ask once more, without cuCIM, where a native library ends the child."""
        try:
            return ask()
        except ChildCrashed:
            if self._reader != "auto" or slide in self._crashed:
                raise
            remember(self._crashed, slide, ("cucim",))
            return ask()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the decoder is closed")

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
