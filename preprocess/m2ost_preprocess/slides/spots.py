"""Spot centres: a grid over the tissue, or read from a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import SpotError
from .rectangle import Rectangle
from .spot_array import IN_WORDS, Places
from .spot_columns import SpotCenters
from .spot_files import read_positions
from .tissue import Mask, cell_tissue


@dataclass(frozen=True)
class Spots:
    """Spots of one slide.

    Parameters
    ----------
    centers : ndarray of float64, shape (n, 2)
        x, y in level-0 pixels.
    names : tuple of str
        One a spot, unique.
    pitch_px : float
        Distance between neighbours in level-0 pixels: for a grid its pitch, else the median distance to the nearest
        other spot (0 for fewer than two).
    source : str
        Where the spots come from, in words.
    columns : tuple of str
        Where a file has x and y; empty for a grid.
    array : ndarray of int32, shape (n, 2), or None
        x, y on the array, where a file has them.
    """

    centers: SpotCenters
    names: tuple[str, ...]
    pitch_px: float
    source: str
    columns: tuple[str, ...] = ()
    array: Places | None = None

    def __len__(self) -> int:
        return len(self.names)

    def within(self, region: Rectangle) -> Spots:
        """Those whose centres lie in a region; the source says so."""
        rows = np.flatnonzero(region.holds(self.centers))
        names = tuple(self.names[row] for row in rows)
        array = None if self.array is None else self.array[rows]
        source = f"{self.source}, region {region}"
        return replace(self, centers=self.centers[rows], names=names, source=source, array=array)

    def places(self) -> Places:
        """x, y of the spots on the array, as a slide-level network is given them: int32, shape (n, 2).

        Those of a file; of a grid its columns and rows, counted from the first that have a spot.

        Raises
        ------
        SpotError
            If they come from a file that does not tell.
        """
        if self.array is not None:
            return self.array
        if self.columns:
            raise SpotError(
                f"{self.source}: this network predicts a slide as a whole and needs {IN_WORDS}; add them, or score a "
                "grid over the tissue"
            )
        if not len(self):
            return np.zeros((0, 2), np.int32)
        cells = np.floor(self.centers / self.pitch_px).astype(np.int32)
        found: Places = cells - cells.min(axis=0)
        return found


def grid(size: tuple[int, int], mask: Mask, pitch_px: float) -> Spots:
    """A square grid over the tissue.

    Parameters
    ----------
    size : (int, int)
        Width and height of the slide in level-0 pixels.
    mask : ndarray of bool, shape (h, w)
        Tissue, on an overview of the whole slide.
    pitch_px : float
        Distance between spots in level-0 pixels.

    Returns
    -------
    Spots
        The centres of those cells, ``pitch_px`` wide, of which at least half is tissue; row by row. Named
        ``{column}x{row}``.

    Raises
    ------
    SpotError
        If the pitch is not a positive number, or so small that the grid has over 10 million cells.
    """
    if not math.isfinite(pitch_px) or pitch_px <= 0:
        raise SpotError(f"the pitch must be a positive number of pixels, not {pitch_px}")
    width, height = size
    columns, rows = math.ceil(width / pitch_px), math.ceil(height / pitch_px)
    if columns * rows > 10_000_000:
        raise SpotError(f"a pitch of {pitch_px:g} px gives {columns * rows:,} cells; choose a larger pitch")
    share = cell_tissue(mask, columns * pitch_px / width, rows * pitch_px / height, columns, rows)
    row, column = np.nonzero(share >= 0.5)
    centers = (np.stack([column, row], axis=1) + 0.5) * pitch_px
    inside = (centers[:, 0] < width) & (centers[:, 1] < height)
    names = tuple(f"{c}x{r}" for c, r in zip(column[inside], row[inside], strict=True))
    return Spots(np.asarray(centers[inside], np.float64), names, pitch_px, "grid")


def read_spots(path: Path) -> Spots:
    """Read spots from a file; see :mod:`m2ost_preprocess.slides.spot_files` for the forms.

    Once a slide's size is known, :func:`m2ost_preprocess.slides.spot_places.check_places` tells whether they can be
    its spots.

    Parameters
    ----------
    path : Path
        A table of text, Parquet or AnnData, also packed by gzip.

    Returns
    -------
    Spots
        One at least.

    Raises
    ------
    SpotError
        As :func:`m2ost_preprocess.slides.spot_files.read_positions` says.
    """
    found = read_positions(path)
    pitch_px = median_pitch_px(found.centers)
    return Spots(found.centers, found.names, pitch_px, f"file {path.name}", found.columns, found.array)


def median_pitch_px(centers: SpotCenters) -> float:
    """Median distance of a spot to its nearest neighbour.

    Parameters
    ----------
    centers : ndarray of float64, shape (n, 2)
        x, y in pixels.

    Returns
    -------
    float
        Pixels; 0 for fewer than two spots.
    """
    if len(centers) < 2:
        return 0.0
    from scipy.spatial import cKDTree  # a quarter of a second, which few commands need

    distances, _ = cKDTree(centers).query(centers, k=2)
    return float(np.median(distances[:, 1]))
