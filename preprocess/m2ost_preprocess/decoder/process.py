"""The parent's end of a decoder."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ..contract import MAX_ROWS, ViewGeometry
from ..errors import PreprocessError, UnreadableSlide
from ..readers.base import Pixels
from ..views import Centers, Scales, Statuses, TilingCounts
from .protocol import CutViews, Describe, SlideInfo, ViewsCut, view_arrays

JOB_TIMEOUT_S = 60.0
"""A decoder that has not answered by then is taken for hung and killed."""


class Decoder:
    """Decodes slides in a child process; thread-safe, one job at a time.

    A child that dies is an :class:`UnreadableSlide` for the slide it was reading; the next job starts a new one.

    Parameters
    ----------
    geometry : ViewGeometry
        Views that :meth:`cut_views` will be asked for; sizes the shared buffer.
    timeout_s : float
        Longest time for one job in seconds.
    """

    def __init__(self, geometry: ViewGeometry | None = None, *, timeout_s: float = JOB_TIMEOUT_S) -> None:
        self._geometry = geometry or ViewGeometry()
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        size = MAX_ROWS * self._geometry.n_views * int(np.prod(self._geometry.shape))
        self._buffer_fd = os.memfd_create("m2ost-views")
        os.ftruncate(self._buffer_fd, size)
        self._buffer = mmap.mmap(self._buffer_fd, size)
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the living child, or None."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def start(self) -> None:
        """Start the child if none is alive."""
        if self.pid is not None:
            return
        self._stop()
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [_python(), "-P", "-m", f"{__package__}.worker", str(theirs.fileno()), str(self._buffer_fd)],
                pass_fds=(theirs.fileno(), self._buffer_fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._pipe = Connection(ours.detach())

    def describe(self, path: Path, **options: Any) -> SlideInfo:
        """Describe a slide.

        Parameters
        ----------
        path : Path
            The slide's file, already resolved.
        **options
            ``pitch_um``, ``mpp``, ``overview_px`` as in :class:`m2ost_preprocess.decoder.protocol.Describe`.

        Raises
        ------
        SlideError
            If the slide cannot be read, or a pitch in µm is asked for without µm/px.
        """
        with self._lock:
            info: SlideInfo = self._ask(Describe(str(path), **options), path)
        return info

    def cut_views(
        self,
        path: Path,
        centers: Centers,
        scales: Scales,
        out: Sequence[Pixels],
        rows: Any = slice(None),
        counts: TilingCounts | None = None,
    ) -> Statuses:
        """Cut the views of up to 256 spots; see :func:`m2ost_preprocess.views.cut_views`.

        Parameters
        ----------
        rows : index of the first axis of ``out``
            Which rows of ``out`` receive the views, in the order of ``centers``.

        Raises
        ------
        SlideError
            If the slide cannot be opened or the child died on it.
        ValueError
            If there are more than 256 spots.
        """
        if len(centers) > MAX_ROWS:
            raise ValueError(f"{len(centers)} spots in one job; at most {MAX_ROWS}")
        with self._lock:
            answer: ViewsCut = self._ask(CutViews(str(path), centers, scales, self._geometry), path)
            for target, source in zip(out, view_arrays(self._buffer, self._geometry, len(centers)), strict=True):
                target[rows] = source
        if counts is not None:
            counts += answer.counts
        return answer.statuses

    def close(self) -> None:
        """End the child and free the buffer; the decoder cannot be used again."""
        with self._lock:
            self._stop()
            self._buffer.close()
            os.close(self._buffer_fd)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, job: CutViews | Describe, path: Path) -> Any:
        self.start()
        assert self._pipe is not None
        try:
            self._pipe.send(job)
            if not self._pipe.poll(self._timeout_s):
                self._stop()
                raise UnreadableSlide(
                    path.name, f"its reader did not answer within {self._timeout_s:g} s and was stopped"
                )
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise UnreadableSlide(
                path.name, f"its reader crashed ({self._stop()}); the file is likely damaged"
            ) from error
        if isinstance(answer, PreprocessError):
            raise answer
        return answer

    def _stop(self) -> str:
        """End the child; in words, how it ended."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._child is None:
            return "never started"
        try:
            # A child that crashed is already on its way out; one that hangs is not.
            code = self._child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        self._child = None
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _python() -> str:
    """The interpreter of this environment; inside Triton's stub ``sys.executable`` is not one."""
    candidate = Path(sys.prefix) / "bin" / "python3"
    return str(candidate) if candidate.exists() else sys.executable
