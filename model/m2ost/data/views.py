"""The views of a section's spots, cut once and kept as uint8 on disk: a training run maps them, and holds none."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import RowStatus, ViewGeometry, as_centers, complete_file
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.slides import fingerprint
from m2ost_preprocess.slides.spot_places import check_places
from m2ost_preprocess.tiling.views import spatial_order

from .errors import DataError
from .section import Section

CHUNK = 64
"""Spots cut at a time; their views take 28 MiB."""

CHECKED = "places 1"
"""By which rules positions were checked when views were cut; part of the key, as kept views are not checked again."""

Views = np.ndarray[Any, np.dtype[np.uint8]]


class ViewCache:
    """Views by section, in a folder; the key is what they depend on, so that a changed slide is cut anew.

    Parameters
    ----------
    folder : Path
        Created where absent. Takes 441 KiB a spot for the paper's views.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def views(self, section: Section, geometry: ViewGeometry, mpp: float | None = None) -> Views:
        """All views of a section's spots.

        Parameters
        ----------
        section : Section
        geometry : ViewGeometry
        mpp : float, optional
            µm a pixel of the finest view; by default the image's own pixels.

        Returns
        -------
        ndarray of uint8, shape (n, views, size_px, size_px, 3)
            Mapped from disk, read-only.

        Raises
        ------
        DataError
            If a spot lies outside the image or cannot be decoded, the folder cannot be written, or ``mpp`` is given and
            the section's own is unknown.
        SlideError
            If the image cannot be opened.
        SpotError
            If the positions cannot be pixels of the image.
        """
        centers = as_centers(section.centers)
        if mpp is not None and section.mpp is None:
            raise DataError(f"section {section.name}: its µm/px is unknown, so that no view can have {mpp} µm/px")
        scale = mpp / section.mpp if mpp is not None and section.mpp is not None else 1.0
        facts = repr((CHECKED, fingerprint(section.image), geometry, *([scale] if scale != 1 else [])))
        key = hashlib.sha256(facts.encode() + centers.tobytes()).hexdigest()
        path = self.folder / f"{section.name}-{key[:16]}.npy"
        if not path.is_file():
            self._cut(section, centers, geometry, scale, path)
        mapped: Views = np.load(path, mmap_mode="r")
        return mapped

    def _cut(self, section: Section, centers: Any, geometry: ViewGeometry, scale: float, path: Path) -> None:
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                scratch = stack.enter_context(complete_file(path))
            except OSError as error:
                raise DataError(f"{self.folder}: cannot keep views there: {error}; choose another folder") from error
            shape = (len(centers), geometry.n_views, *geometry.shape)
            out = np.lib.format.open_memmap(scratch, "w+", np.uint8, shape)
            _reserve(scratch)
            with Decoder(geometry) as decoder:
                slide = decoder.describe(section.image.resolve())
                check_places(
                    section.centers,
                    slide.size,
                    lambda: slide.thumbnail,
                    source=f"section {section.name}",
                    columns=section.columns,
                )
                self._fill(out, section, centers, geometry, scale, decoder)
            out.flush()
            del out

    def _fill(
        self, out: Views, section: Section, centers: Any, geometry: ViewGeometry, scale: float, decoder: Decoder
    ) -> None:
        order, image = spatial_order(centers), section.image.resolve()
        for first in range(0, len(order), CHUNK):
            rows = order[first : first + CHUNK]
            views = [np.empty((len(rows), *geometry.shape), np.uint8) for _ in range(geometry.n_views)]
            statuses = decoder.cut_views(image, centers[rows], np.full(len(rows), scale, np.float32), views)
            bad = np.flatnonzero(statuses != RowStatus.OK)
            if len(bad):
                status, spot = RowStatus(int(statuses[bad[0]])), int(rows[bad[0]])
                outside = status == RowStatus.OUTSIDE_SLIDE
                raise DataError(
                    f"section {section.name}, spot {section.spot_names[spot]} at {tuple(centers[spot].tolist())} on "
                    f"{section.image}: {status.reason}"
                    + ("; are positions and image of the same resolution?" if outside else "")
                )
            for view, cut in enumerate(views):
                out[rows, view] = cut


def _reserve(path: Path) -> None:
    """Take the space of a sparse file: a mapping that runs out of space kills the process."""
    with path.open("rb+") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise DataError(f"{path.parent}: no room for {size / 2**20:.0f} MiB of views ({error})") from error
