"""The parent's end of a decoder."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from m2ost_contract import MAX_ROWS, ViewGeometry

from ..readers.base import Pixels
from ..tiling.threads import default_threads
from ..tiling.tiles import TilingCounts
from ..tiling.views import Centers, Scales, Statuses
from .child import STALL_S, Limits
from .jobs import Jobs, RegionReceiver
from .protocol import (
    CutViews,
    Decoding,
    Describe,
    Fingerprint,
    Job,
    MakeThumbnail,
    Open,
    Opened,
    ReadRectangle,
    ReadRegions,
    Slide,
    SlideInfo,
    ViewsCut,
    buffer_bytes,
    rectangle_array,
    view_arrays,
)

CUT_TIMEOUT_S = 600.0
"""Longest time for cutting views once, in seconds. A decoder that hangs is stopped much sooner: see ``STALL_S``."""

DESCRIBE_TIMEOUT_S = 300.0
"""The same for describing a slide, which may decode all of it."""


class Decoder:
    """Decodes slides in a child process; thread-safe, one job at a time.

    A child that dies is an :class:`UnreadableSlide` for the slide it was reading; the next job starts a new one. One
    that a native library ends is replaced at once, and the slide read without cuCIM, now and from then on.

    In all methods ``slide`` is a slide's file, already resolved, or the slide of a request, and ``limits`` take the
    place of the decoder's own. All raise ``SlideError`` where the slide cannot be opened or decoded or the child died
    on it, and ``RuntimeError`` once the decoder is closed; below stands what a method raises besides.

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

    Attributes
    ----------
    kept_bytes : int
        Bytes of decoded tiles and of views that the child kept after the last job that it answered.

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
        self.kept_bytes = 0
        self._jobs = Jobs(
            buffer_bytes(self.geometry, MAX_ROWS),
            reader=reader,
            without=without,
            threads=default_threads() if threads is None else threads,
            environment=environment or {},
        )

    @property
    def shared_memory(self) -> Pixels:
        """The memory that pixels come through, ndarray of uint8, shape (bytes,): for a driver to pin.

        Not to be kept beyond the decoder.
        """
        return np.frombuffer(self._jobs.buffer, np.uint8)

    @property
    def pid(self) -> int | None:
        """Process id of the living child, or None where none lives."""
        return self._jobs.child.pid

    def start(self) -> None:
        """Start the child if none is alive, so that the first job need not.

        Raises
        ------
        OSError
            If the system grants no process.
        """
        with self._lock:
            self._jobs.start()

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
        slide, limits
            See the class.
        pitch_um : float, optional
            Asks for a spot grid with this distance between spots in µm.
        mpp : float, optional
            µm per level-0 pixel, in place of the slide's own.

        Raises
        ------
        SlideError
            Also if a pitch in µm is asked for and µm/px or the tissue cannot be told.
        SpotError
            If the pitch gives no usable grid.
        """
        info: SlideInfo = self._ask(Describe(slide=slide, pitch_um=pitch_um, mpp=mpp), limits)
        return info

    def fingerprint(self, slide: Slide, *, limits: Limits | None = None) -> str:
        """Identify a slide's content by 64 hexadecimal digits; see :func:`m2ost_preprocess.slides.fingerprint`."""
        digits: str = self._ask(Fingerprint(slide=slide), limits)
        return digits

    def open(self, slide: Slide) -> Opened:
        """Open a slide, and say what is known of it before any of its pixels is needed."""
        opened: Opened = self._ask(Open(slide=slide))
        return opened

    def thumbnail(self, slide: Slide, max_px: int) -> Pixels:
        """Make a whole slide small; see :meth:`m2ost_preprocess.readers.SlideReader.thumbnail`.

        Parameters
        ----------
        slide
            See the class.
        max_px : int
            Most pixels of the longer side.

        Returns
        -------
        ndarray of uint8, shape (height, width, 3)
            RGB.
        """
        pixels: Pixels = self._ask(MakeThumbnail(slide=slide, max_px=max_px))
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
        slide
            See the class.
        centers, scales, counts, pyramid
            As of :func:`m2ost_preprocess.tiling.views.cut_views`: shapes (n, 2) and (n,), int32 and float32.
        out : sequence of ndarray of uint8, each shape (m, size_px, size_px, 3)
            Receives one array a view, RGB; rows whose status is not OK become black.
        rows : index of the first axis of ``out``
            Which rows of ``out`` receive the views, in the order of ``centers``.
        limits : Limits, optional
            See the class. Rows that nobody waits for any more are left out: their views are black, and their status is
            that of a row whose slide is not available.

        Returns
        -------
        ndarray of int32, shape (n,)
            A ``RowStatus`` a row.

        Raises
        ------
        ValueError
            If there are more than 256 spots.
        """
        _check_rows(centers)
        with self._lock:
            job = CutViews(slide=slide, centers=centers, scales=scales, geometry=self.geometry, pyramid=pyramid)
            answer: ViewsCut = self._jobs.ask(job, limits or self._cutting)
            # The next job overwrites the buffer.
            for target, source in zip(out, view_arrays(self._jobs.buffer, self.geometry, len(centers)), strict=True):
                target[rows] = source
        self.kept_bytes = answer.kept_bytes
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
        slide, centers, scales, counts, limits
            As of :meth:`cut_views`.
        receiver : RegionReceiver
            Takes the pixels. What it raises ends the child and is passed on.
        decode : {"auto", "cpu", "gpu"}
            Where tiles are decoded.
        gpu : int, optional
            The GPU that the receiver works on.

        Returns
        -------
        statuses : ndarray of int32, shape (n,)
            A ``RowStatus`` a row. The regions of rows that are not OK have not come whole.
        decoding : Decoding or None
            Where the tiles were decoded; None where none was needed.

        Raises
        ------
        UnsupportedRequest
            If the slide cannot be decoded on a GPU that ``decode`` insists on.
        ValueError
            If there are more than 256 spots.
        """
        _check_rows(centers)
        job = ReadRegions(slide=slide, centers=centers, scales=scales, geometry=self.geometry, decode=decode, gpu=gpu)
        with self._lock:
            answer = self._jobs.read_regions(job, receiver, limits or self._cutting)
        self.kept_bytes = answer.kept_bytes
        if counts is not None:
            counts += answer.counts
        return answer.statuses, answer.decoding

    def read(self, slide: Slide, left: int, top: int, width: int, height: int) -> Pixels:
        """Read level-0 pixels of a rectangle inside a slide, in as many jobs as the shared buffer makes of it.

        Parameters
        ----------
        slide
            See the class.
        left, top, width, height : int
            The rectangle in level-0 pixels.

        Returns
        -------
        ndarray of uint8, shape (height, width, 3)
            RGB.

        Raises
        ------
        ValueError
            If one row of them is larger than the buffer.
        """
        rows = self._jobs.buffer_bytes // (3 * width)
        if rows < 1:
            raise ValueError(f"a row of {width} px does not fit into the buffer of {self._jobs.buffer_bytes} bytes")
        out = np.empty((height, width, 3), np.uint8)
        for first in range(0, height, rows):
            count = min(rows, height - first)
            with self._lock:
                job = ReadRectangle(slide=slide, left=left, top=top + first, width=width, height=count)
                self._jobs.ask(job, self._cutting)
                out[first : first + count] = rectangle_array(self._jobs.buffer, width, count)
        return out

    def close(self) -> None:
        """End the child and free the buffer, after the jobs under way; later ones raise ``RuntimeError``."""
        with self._lock:
            self._jobs.close()
            self.kept_bytes = 0

    def _ask(self, job: Job, limits: Limits | None = None) -> Any:
        """The answer to a job that leaves nothing in the buffer."""
        with self._lock:
            return self._jobs.ask(job, limits or self._describing)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check_rows(centers: Centers) -> None:
    if len(centers) > MAX_ROWS:
        raise ValueError(f"{len(centers)} spots in one job; at most {MAX_ROWS}")
