"""The child process: ``python -m m2ost_preprocess.decoder.worker SOCKET_FD BUFFER_FD``.

Reads jobs from the socket until its parent closes it, so it never outlives the parent. Views go into the shared
buffer, everything else through the socket.
"""

from __future__ import annotations

import mmap
import sys
from collections import OrderedDict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PreprocessError, UnknownResolution, UnreadableSlide
from ..readers import Resolution, SlideReader, identify, native_errors, open_slide
from ..readers.base import MPP_PLAUSIBLE
from ..slides import fingerprint, slide_files
from ..spots import Spots, grid
from ..tissue import MASK_PX, tissue_mask
from ..views import TilingCounts, cut_views
from .protocol import CutViews, Describe, SlideInfo, ViewsCut, view_arrays

MAX_OPEN_SLIDES = 16
MAX_RESIDENT_BYTES = 2 << 30


class OpenSlides:
    """Slides kept open, least recently used first out; a file that changed on disk is opened anew."""

    def __init__(self) -> None:
        self._readers: OrderedDict[tuple[str, int, int], SlideReader] = OrderedDict()

    def get(self, path: str) -> SlideReader:
        """The reader of ``path``."""
        stats = [file.stat() for file in slide_files(Path(path))]
        key = (path, max(s.st_mtime_ns for s in stats), sum(s.st_size for s in stats))
        if key not in self._readers:
            self._readers[key] = open_slide(Path(path))
            while len(self._readers) > 1 and (
                len(self._readers) > MAX_OPEN_SLIDES
                or sum(r.resident_bytes for r in self._readers.values()) > MAX_RESIDENT_BYTES
            ):
                self._readers.popitem(last=False)[1].close()
        self._readers.move_to_end(key)
        return self._readers[key]


def describe(slides: OpenSlides, job: Describe) -> SlideInfo:
    """Answer a :class:`Describe` job."""
    path = Path(job.path)
    kind = identify(path)
    reader = slides.get(job.path)
    resolution = reader.resolution
    if job.mpp is not None:
        low, high = MPP_PLAUSIBLE
        if not low <= job.mpp <= high:
            raise UnknownResolution(path.name, f"{job.mpp:g} µm/px was given; it must lie in {low:g} to {high:g}")
        resolution = Resolution(job.mpp, "given")
    mask_source = reader.thumbnail(MASK_PX)
    mask = tissue_mask(mask_source)
    spots = Spots(np.zeros((0, 2)), (), 0.0, "none asked for")
    if job.pitch_um is not None:
        if resolution is None:
            raise UnknownResolution(
                path.name,
                f"a pitch of {job.pitch_um:g} µm needs µm/px and the file carries none; give it with --mpp",
            )
        spots = grid(reader.size, mask, job.pitch_um / resolution.mpp)
    return SlideInfo(
        size=reader.size,
        mpp=resolution.mpp if resolution else None,
        mpp_source=resolution.source if resolution else None,
        vendor=kind.vendor,
        reader=reader.name,
        reader_reason=kind.reason,
        note=reader.note,
        fingerprint=fingerprint(path),
        tissue_fraction=float(mask.mean()),
        pitch_px=spots.pitch_px,
        centers=np.floor(spots.centers),
        names=spots.names,
        thumbnail=mask_source if job.overview_px == MASK_PX else reader.thumbnail(job.overview_px),
    )


def cut(slides: OpenSlides, job: CutViews, buffer: mmap.mmap) -> ViewsCut:
    """Answer a :class:`CutViews` job."""
    counts = TilingCounts()
    out = view_arrays(buffer, job.geometry, len(job.centers))
    statuses = cut_views(slides.get(job.path), job.centers, job.scales, job.geometry, out, counts)
    return ViewsCut(statuses, counts)


def main() -> None:
    """Serve jobs until the parent goes away."""
    socket_fd, buffer_fd = (int(a) for a in sys.argv[1:3])
    pipe = Connection(socket_fd)
    buffer = mmap.mmap(buffer_fd, 0)
    slides = OpenSlides()
    native_errors.install()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        answer: Any
        try:
            answer = describe(slides, job) if isinstance(job, Describe) else cut(slides, job, buffer)
        except PreprocessError as error:
            answer = error
        except Exception as error:  # an answer, whatever it is: the parent takes silence for a crash
            answer = UnreadableSlide(Path(job.path).name, f"unexpected {type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except OSError:
            return


if __name__ == "__main__":
    main()
