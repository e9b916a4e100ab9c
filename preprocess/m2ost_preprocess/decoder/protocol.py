"""What a decoder is asked and what it answers; both ends of the pipe import this."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import ViewGeometry

from ..readers.base import Pixels
from ..slides import RootedSlide
from ..tiling.tiles import TilingCounts
from ..tiling.views import Centers, Region, Scales

SLOTS = 2
"""Strips of pixels that may be on their way from child to parent: one is read while the other is used."""

MIN_SLOT_BYTES = 1 << 20

MAX_REMEMBERED = 1024
"""Slides of which it is remembered where they are decoded."""

Slide = Path | RootedSlide
"""A slide's file, already resolved; or the slide of a request, whose files the child looks for under its root."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a decoder can be asked about a slide; see :func:`m2ost_preprocess.readers.open_slide` for the readers.

    ``reader`` is to read it: ``auto``, ``cucim``, ``openslide`` or ``image``. ``auto`` passes over those in
    ``without``.
    """

    slide: Slide
    reader: str = "auto"
    without: tuple[str, ...] = ()

    @property
    def place(self) -> Path:
        """Where the slide should lie; for messages alone."""
        return self.slide.place if isinstance(self.slide, RootedSlide) else self.slide


@dataclass(frozen=True, kw_only=True)
class CutViews(Job):
    """Cut the views of up to 256 spots into the shared buffer; answered by :class:`ViewsCut`.

    ``centers`` and ``scales`` are as of :func:`m2ost_preprocess.tiling.views.cut_views`. With ``pyramid`` coarse views
    may come from the slide's own lower levels.
    """

    centers: Centers
    scales: Scales
    geometry: ViewGeometry
    pyramid: bool = False


@dataclass(frozen=True)
class ViewsCut:
    """A ``RowStatus`` a row, shape (n,), what was read for them, and bytes of tiles and views that are kept now."""

    statuses: np.ndarray[Any, np.dtype[np.int32]]
    counts: TilingCounts
    kept_bytes: int


@dataclass(frozen=True, kw_only=True)
class ReadRegions(Job):
    """Read the regions around spots; answered by a :class:`Strip` after the other and, at last, :class:`RegionsRead`.

    Every answer but the last wants an :class:`Acknowledged`. ``decode`` says where tiles are decoded: ``cpu``, ``gpu``,
    or ``auto``, where it was measured to be faster for this slide. ``gpu`` is None where the parent works on the CPU.
    """

    centers: Centers
    scales: Scales
    geometry: ViewGeometry
    decode: str = "cpu"
    gpu: int | None = None


@dataclass(frozen=True)
class GpuSlots:
    """The child's slots in GPU memory, for the parent to open; sent before the first strip that lies in one.

    Parameters
    ----------
    handles : tuple of bytes
        A CUDA inter-process memory handle a slot.
    slot_bytes : int
        Size of each.
    """

    handles: tuple[bytes, ...]
    slot_bytes: int


@dataclass(frozen=True)
class Strip:
    """Some rows of a region, in a slot. They come from top to bottom; a region that cannot be read ends without a last.

    Parameters
    ----------
    region : Region
    top, height : int
        The strip, in rows of the region.
    slot : int
        Where its pixels are.
    on_gpu : bool
        Whether that is a slot in GPU memory.
    """

    region: Region
    top: int
    height: int
    slot: int
    on_gpu: bool = False

    @property
    def last(self) -> bool:
        """Whether it completes its region."""
        return self.top + self.height == self.region.height


@dataclass(frozen=True)
class Acknowledged:
    """The parent is done with the oldest answer that it has not acknowledged yet; its slot is free."""


@dataclass(frozen=True)
class Decoding:
    """Where a slide's tiles are decoded, and why.

    Parameters
    ----------
    device : {"cpu", "gpu"}
        Where.
    reason : str
        Why there.
    cpu_s, gpu_s : float, optional
        Seconds for the same pixels, ready on the GPU; None where nothing was measured.
    max_abs_diff : int, optional
        Largest difference between the two in grey levels.
    """

    device: str
    reason: str
    cpu_s: float | None = None
    gpu_s: float | None = None
    max_abs_diff: int | None = None


@dataclass(frozen=True)
class RegionsRead:
    """A ``RowStatus`` a row, what was read for them, where tiles were decoded, and bytes of tiles that are kept now.

    ``decoding`` is None where no tile was needed.
    """

    statuses: np.ndarray[Any, np.dtype[np.int32]]
    counts: TilingCounts
    decoding: Decoding | None
    kept_bytes: int


@dataclass(frozen=True, kw_only=True)
class Describe(Job):
    """Describe a slide; answered by :class:`SlideInfo`.

    ``pitch_um`` asks for a spot grid with this distance between spots in µm. ``mpp``, µm per level-0 pixel, takes the
    place of the slide's own.
    """

    pitch_um: float | None = None
    mpp: float | None = None


@dataclass(frozen=True, kw_only=True)
class Open(Job):
    """Open a slide; answered by :class:`Opened`."""


@dataclass(frozen=True)
class Opened:
    """What is known of a slide before any of its pixels is needed; see :class:`~.slide.DecodedSlide` for the fields."""

    size: tuple[int, int]
    mpp: float | None
    reader: str
    tile: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Fingerprint(Job):
    """Identify a slide's content; answered by 64 hexadecimal digits."""


@dataclass(frozen=True, kw_only=True)
class MakeThumbnail(Job):
    """Make the whole slide small, its longer side at most ``max_px`` pixels.

    Answered by ndarray of uint8, shape (height, width, 3).
    """

    max_px: int


@dataclass(frozen=True, kw_only=True)
class ReadRectangle(Job):
    """Read level-0 pixels inside the slide into the shared buffer; answered by None.

    3·width·height bytes must be at most those of the buffer.
    """

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class SlideInfo:
    """What is known about a slide.

    Parameters
    ----------
    size : (int, int)
        Width and height of level 0 in pixels.
    mpp : float or None
        µm per level-0 pixel.
    mpp_source : str or None
        Who says so; ``given`` where the request did.
    vendor, reader, reader_reason, note : str
        The file's format, what reads it and why, and what a user should know of it: what was put right, what
        contradicts itself in it, and what could not be told of its tissue.
    fingerprint : str
        sha256 that identifies the content.
    tissue_fraction : float
        Share of the slide that is tissue; 0 where nobody can tell, as ``note`` says then.
    pitch_px : float
        Distance between grid spots in level-0 pixels; 0 where no grid was asked for.
    centers : ndarray of float64, shape (n, 2)
        Grid spots, x, y in level-0 pixels.
    names : tuple of str
        Their names.
    thumbnail : ndarray of uint8, shape (h, w, 3)
        RGB overview, its longer side at most ``m2ost_preprocess.slides.tissue.MASK_PX``.
    """

    size: tuple[int, int]
    mpp: float | None
    mpp_source: str | None
    vendor: str
    reader: str
    reader_reason: str
    note: str
    fingerprint: str
    tissue_fraction: float
    pitch_px: float
    centers: np.ndarray[Any, np.dtype[np.float64]]
    names: tuple[str, ...]
    thumbnail: Pixels

    def facts(self) -> dict[str, Any]:
        """Everything but the arrays: field name → value that JSON can hold."""
        arrays = ("centers", "names", "thumbnail")
        return {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in arrays}


def remember(memory: dict[Any, Any], slide: Any, value: Any) -> None:
    """Note something under a slide's key, and forget all others once there are ``MAX_REMEMBERED``."""
    if len(memory) >= MAX_REMEMBERED:
        memory.clear()
    memory[slide] = value


def rectangle_array(buffer: mmap.mmap, width: int, height: int) -> Pixels:
    """The shared buffer as a region, uint8, shape (height, width, 3); no copy."""
    return np.frombuffer(buffer, np.uint8, 3 * width * height).reshape(height, width, 3)


def view_arrays(buffer: mmap.mmap, geometry: ViewGeometry, rows: int) -> list[Pixels]:
    """The shared buffer as one array a view, one after the other.

    Each is uint8, shape (rows, size_px, size_px, 3), RGB; no copies.
    """
    shape = (rows, *geometry.shape)
    step = int(np.prod(shape))
    return [np.frombuffer(buffer, np.uint8, step, i * step).reshape(shape) for i in range(geometry.n_views)]


def buffer_bytes(geometry: ViewGeometry, rows: int) -> int:
    """Bytes for the views of that many spots, and never too few for two strips of pixels."""
    return max(rows * geometry.n_views * int(np.prod(geometry.shape)), SLOTS * MIN_SLOT_BYTES)


def strip_array(buffer: mmap.mmap, slot: int, height: int, width: int) -> Pixels:
    """A strip of pixels in that slot of the shared buffer, uint8, shape (height, width, 3); no copy."""
    first = slot * (len(buffer) // SLOTS)
    return np.frombuffer(buffer, np.uint8, height * width * 3, first).reshape(height, width, 3)
