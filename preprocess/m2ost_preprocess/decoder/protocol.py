"""What a decoder is asked and what it answers; both ends of the pipe import this."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..contract import ViewGeometry
from ..readers.base import Pixels
from ..views import Centers, Scales, TilingCounts


@dataclass(frozen=True)
class CutViews:
    """Cut the views of spots into the shared buffer; answered by :class:`ViewsCut`."""

    path: str
    centers: Centers
    scales: Scales
    geometry: ViewGeometry


@dataclass(frozen=True)
class ViewsCut:
    """Statuses of the rows, and what it took."""

    statuses: np.ndarray[Any, np.dtype[np.int32]]
    counts: TilingCounts


@dataclass(frozen=True)
class Describe:
    """Describe a slide; answered by :class:`SlideInfo`.

    ``pitch_um`` asks for a spot grid, ``mpp`` overrides the slide's own µm/px, ``overview_px`` bounds the thumbnail.
    """

    path: str
    pitch_um: float | None = None
    mpp: float | None = None
    overview_px: int = 1024


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
        Who says so.
    vendor, reader, reader_reason, note : str
        The file's format, what reads it and why, and what the reader put right.
    fingerprint : str
        sha256 that identifies the content.
    tissue_fraction : float
        Share of the slide that is tissue.
    pitch_px : float
        Distance between grid spots in level-0 pixels; 0 where no grid was asked for.
    centers : ndarray of float64, shape (n, 2)
        Grid spots, x, y in level-0 pixels.
    names : tuple of str
        Their names.
    thumbnail : ndarray of uint8, shape (h, w, 3)
        RGB overview.
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
        """Everything but the arrays, for JSON."""
        arrays = ("centers", "names", "thumbnail")
        return {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in arrays}


def view_arrays(buffer: mmap.mmap, geometry: ViewGeometry, rows: int) -> list[Pixels]:
    """The shared buffer as one array a view: uint8, shape (rows, size_px, size_px, 3), one after the other."""
    shape = (rows, *geometry.shape)
    step = int(np.prod(shape))
    return [np.frombuffer(buffer, np.uint8, step, i * step).reshape(shape) for i in range(geometry.n_views)]
