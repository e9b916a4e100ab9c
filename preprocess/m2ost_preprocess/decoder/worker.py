"""The child process: ``python -m m2ost_preprocess.decoder.worker SOCKET_FD BUFFER_FD THREADS``.

Reads jobs from the socket until its parent closes it or dies, in the middle of a job too: it does not outlive the
parent. Views go into the shared buffer, everything else through the socket.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
import threading
from collections import OrderedDict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import ENV_DECODER_MEMORY_MIB, ENV_DECODER_NICE, RowStatus

from .. import progress
from ..errors import (
    PreprocessError,
    SlideChanged,
    SlideError,
    UnknownResolution,
    UnreadableSlide,
    answered,
    without_folders,
)
from ..readers import Resolution, SlideReader, native_errors, open_slide
from ..readers.base import Pixels
from ..readers.resolution import MPP_PLAUSIBLE
from ..slides import RootedSlide, fingerprint, slide_files
from ..tiling.kept_views import KeptViews, Rows
from ..tiling.spans import Spans
from ..tiling.threads import Helpers
from ..tiling.tiles import CachedReader, TileCache, TilingCounts
from ..tiling.views import cut_views
from .control import Control
from .gpu import is_cuda_error
from .memory import ceiling_mib, limit_own
from .protocol import (
    CutViews,
    Describe,
    Fingerprint,
    Job,
    MakeThumbnail,
    Open,
    Opened,
    ReadRectangle,
    ReadRegions,
    RegionsRead,
    SlideInfo,
    ViewsCut,
    rectangle_array,
    remember,
    view_arrays,
)
from .regions import RegionStreams

MAX_OPEN_SLIDES = 16
MAX_RESIDENT_BYTES = 2 << 30


class OpenSlides:
    """Slides kept open, least recently used first out; a file that changed on disk is opened anew."""

    def __init__(self, cache: TileCache, helpers: Helpers, control: Control) -> None:
        self._cache, self._helpers, self._control = cache, helpers, control
        self._open: OrderedDict[tuple[object, ...], CachedReader] = OrderedDict()
        self._failed: dict[tuple[object, ...], tuple[str, ...]] = {}

    def get(self, job: Job) -> CachedReader:
        """A job's slide, opened if it is not open as it now stands on disk; slides asked for later displace it.

        Raises ``SlideNotFound`` or ``UnreadableSlide``, as do all functions here that answer a job.
        """
        self._control.at_files = True
        path = path_of(job)
        # The files' state is part of the key: a slide that changed on disk is another one.
        key = (str(path), job.reader, job.without, *_state(path))
        self._control.at_files = False
        if key not in self._open:
            without = (*job.without, *self._failed.get(key, ()))
            reader = self._opened(path, job.reader, without)
            if _state(path) != key[3:]:
                reader.close()
                raise _changed(job)
            self._open[key] = CachedReader(reader, self._cache, key, self._helpers)
            # Never the one that was just opened, however much memory it takes.
            while len(self._open) > 1 and (
                len(self._open) > MAX_OPEN_SLIDES
                or sum(reader.resident_bytes for reader in self._open.values()) > MAX_RESIDENT_BYTES
            ):
                self._displace(*self._open.popitem(last=False))
        self._open.move_to_end(key)
        return self._open[key]

    @property
    def key(self) -> tuple[object, ...]:
        """The slide that :meth:`get` gave last: how it is read, and its files as they stood."""
        return next(reversed(self._open))

    def check_unchanged(self, job: Job) -> None:
        """Raise ``SlideChanged`` where a file of the slide that :meth:`get` gave last was replaced or changed since."""
        if _state(Path(str(self.key[0]))) != self.key[3:]:
            raise _changed(job)

    def _opened(self, path: Path, reader: str, without: tuple[str, ...]) -> SlideReader:
        """A slide, opened anew; where memory runs out, once more with the memory that the others give up."""
        try:
            return open_slide(path, reader, without=without)
        except MemoryError:
            if not self._open:
                raise
        self.close()  # out of the handler, whose error keeps what was decoded
        return open_slide(path, reader, without=without)

    def close(self) -> None:
        """Close all; they are opened anew when they are asked for."""
        while self._open:
            self._displace(*self._open.popitem())
        self._cache.clear()

    def _displace(self, key: tuple[object, ...], reader: CachedReader) -> None:
        if reader.failed_readers:
            remember(self._failed, key, reader.failed_readers)
        reader.close()


def path_of(job: Job) -> Path:
    """The file of a job's slide; ``SlideNotFound`` if a request names it, and there is none such under its root."""
    return job.slide.resolve() if isinstance(job.slide, RootedSlide) else job.slide


def _state(path: Path) -> tuple[object, ...]:
    """What changes of a slide's files when one is replaced or written to."""
    stats = [file.stat() for file in slide_files(path)]
    return tuple((s.st_ino, s.st_mtime_ns, s.st_ctime_ns, s.st_size) for s in stats)


def _changed(job: Job) -> SlideChanged:
    return SlideChanged(job.slide.name, "it was replaced while it was read; ask again")


def describe(slides: OpenSlides, job: Describe) -> SlideInfo:
    """Answer a :class:`Describe` job.

    Raises ``UnknownResolution`` if ``job.mpp`` is implausible, or a pitch is asked for and nobody gives µm/px;
    ``UnknownTissue`` if one is and nobody can tell where the tissue is; ``SpotError`` if it gives no usable grid.
    """
    # Only descriptions need SciPy and scikit-image, which take long to load.
    from ..slides.spots import Spots, grid
    from ..slides.tissue import MASK_PX, find_tissue

    reader, name = slides.get(job), job.slide.name
    source = reader.uncached
    resolution = source.resolution
    if job.mpp is not None:
        low, high = MPP_PLAUSIBLE
        if not low <= job.mpp <= high:
            raise UnknownResolution(name, f"{job.mpp:g} µm/px was given; it must lie in {low:g} to {high:g}")
        resolution = Resolution(job.mpp, "given")
    overview = source.thumbnail(MASK_PX)
    tissue = find_tissue(overview)
    spots = Spots(np.zeros((0, 2)), (), 0.0, "none asked for")
    if job.pitch_um is not None:
        if resolution is None:
            raise UnknownResolution(
                name,
                f"a pitch of {job.pitch_um:g} µm needs µm/px and the file carries none"
                f"{''.join(f' ({note})' for note in source.notes)}; give it with --mpp, or as mpp in an archive's list",
            )
        spots = grid(reader.size, tissue.known(name), job.pitch_um / resolution.mpp)
    return SlideInfo(
        size=reader.size,
        mpp=resolution.mpp if resolution else None,
        mpp_source=resolution.source if resolution else None,
        vendor=source.vendor,
        reader=source.name,
        reader_reason=without_folders(source.reason, source.path),
        note=without_folders("; ".join(filter(None, (*source.notes, tissue.note, tissue.refusal))), source.path),
        fingerprint=fingerprint(source.path),
        tissue_fraction=float(tissue.mask.mean()),
        pitch_px=spots.pitch_px,
        centers=np.floor(spots.centers),
        names=spots.names,
        thumbnail=overview,
    )


class _Renumbered:
    """Flags of rows that have other numbers where they are looked at."""

    def __init__(self, flags: Pixels, rows: Rows) -> None:
        self._flags, self._rows = flags, rows

    def __getitem__(self, rows: Rows) -> Pixels:
        return self._flags[self._rows[rows]]


def cut(
    slides: OpenSlides, kept: KeptViews, job: CutViews, buffer: mmap.mmap, helpers: Helpers, unwanted: Pixels
) -> ViewsCut:
    """Answer a :class:`CutViews` job; rows that are not 0 in ``unwanted``, shape (256,), are left out."""
    counts = TilingCounts()
    out = view_arrays(buffer, job.geometry, len(job.centers))
    reader = slides.get(job)
    how = (slides.key, job.pyramid, job.geometry)
    missing = kept.fill(how, job.centers, job.scales, out)
    counts.kept_spots = len(job.centers) - len(missing)
    # Without a row that is kept, views are cut where they belong; else in between, and copied there.
    own = out if not counts.kept_spots else [array[missing] for array in out]
    centers, scales = job.centers[missing], job.scales[missing]
    flags: Any = _Renumbered(unwanted, missing)
    cut_statuses = cut_views(
        reader, centers, scales, job.geometry, own, counts, pyramid=job.pyramid, helpers=helpers, unwanted=flags
    )
    kept.keep(how, centers, scales, own, cut_statuses)
    statuses = np.full(len(job.centers), RowStatus.OK, np.int32)
    statuses[missing] = cut_statuses
    if counts.kept_spots:
        for array, views in zip(out, own, strict=True):
            array[missing] = views
    counts += reader.take_counts()
    return ViewsCut(statuses, counts, reader.cache_bytes + kept.nbytes)


def read_rectangle(slides: OpenSlides, job: ReadRectangle, buffer: mmap.mmap) -> None:
    """Answer a :class:`ReadRectangle` job."""
    reader = slides.get(job)
    pixels = reader.uncached.read(job.left, job.top, job.width, job.height)
    rectangle_array(buffer, job.width, job.height)[...] = pixels


def opened(slides: OpenSlides, job: Open) -> Opened:
    """Answer an :class:`Open` job."""
    source = slides.get(job).uncached
    mpp = source.resolution.mpp if source.resolution else None
    return Opened(source.size, mpp, source.name, source.tile_size(0))


def answer_job(
    slides: OpenSlides,
    kept: KeptViews,
    streams: RegionStreams,
    helpers: Helpers,
    job: Any,
    buffer: mmap.mmap,
    control: Control,
) -> SlideInfo | Opened | Pixels | ViewsCut | RegionsRead | str | None:
    """Answer any job, with what its class in ``protocol`` says.

    Raises ``SlideChanged`` where the slide was replaced meanwhile: an answer is of one content.
    """
    # A fingerprint needs no reader: it opens no slide, and leaves none open that could have changed.
    if isinstance(job, Fingerprint):
        control.at_files = True
        return fingerprint(path_of(job))
    answer: SlideInfo | Opened | Pixels | ViewsCut | RegionsRead | None = None
    if isinstance(job, Describe):
        answer = describe(slides, job)
    elif isinstance(job, Open):
        answer = opened(slides, job)
    elif isinstance(job, MakeThumbnail):
        answer = slides.get(job).uncached.thumbnail(job.max_px)
    elif isinstance(job, ReadRectangle):
        read_rectangle(slides, job, buffer)
    elif isinstance(job, ReadRegions):
        answer = streams.read(slides.get(job), job)
    else:
        answer = cut(slides, kept, job, buffer, helpers, control.unwanted)
    slides.check_unchanged(job)
    return answer


def _told(job: Job, error: Exception, ceiling: int) -> PreprocessError:
    """What is said of an error to whoever asked for a slide."""
    if isinstance(error, MemoryError):
        return UnreadableSlide(
            job.slide.name,
            f"its reader ran out of memory, of which it may take {ceiling} MiB; set {ENV_DECODER_MEMORY_MIB} to more, "
            "or convert the slide to smaller tiles",
        )
    told = answered(job.slide.name, error)
    if isinstance(told, SlideError):
        told = type(told)(told.slide, without_folders(told.message, job.place))
    return told


def _leave_with(socket_fd: int) -> None:
    """End this process once the other end of the socket is closed; a decode under way would not notice."""
    poll = select.poll()
    poll.register(socket_fd, 0)  # a hang-up is reported unasked
    poll.poll()
    os._exit(0)


def main() -> None:
    """Serve jobs until the parent goes away."""
    socket_fd, buffer_fd, control_fd, threads = (int(a) for a in sys.argv[1:5])
    os.nice(int(os.environ.get(ENV_DECODER_NICE, "0")))
    pipe = Connection(socket_fd)
    buffer, control = mmap.mmap(buffer_fd, 0), Control(control_fd)
    progress.report_to(control.beat)
    spans = Spans.from_environment()
    helpers = Helpers(threads, spans)
    slides, kept = OpenSlides(TileCache.from_environment(), helpers, control), KeptViews.from_environment()
    streams = RegionStreams(pipe, buffer, spans, control)
    native_errors.install()
    ceiling = ceiling_mib(os.environ)
    limit_own(ceiling)
    threading.Thread(target=_leave_with, args=(socket_fd,), daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        answer: Any
        try:
            answer = answer_job(slides, kept, streams, helpers, job, buffer, control)
        except Exception as error:  # an answer, whatever it is: the parent takes silence for a crash
            if is_cuda_error(error):
                os._exit(1)  # and so it is, but for the parent to start a process in which the GPU works
            if isinstance(error, MemoryError):
                slides.close()
                kept.clear()
            answer = _told(job, error, ceiling)
        native_errors.pass_on()
        try:
            pipe.send(answer)
        except OSError:
            return


if __name__ == "__main__":
    main()
