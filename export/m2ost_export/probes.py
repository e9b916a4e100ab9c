"""Views to compare two engines on: made ones over the full range of inputs, and real ones of a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import MAX_ROWS, RowStatus, ViewGeometry, as_centers
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.errors import SpotError
from m2ost_preprocess.slides.spot_places import check_places
from m2ost_preprocess.slides.spots import grid, read_spots
from m2ost_preprocess.slides.tissue import tissue_mask

Views = list[np.ndarray[Any, np.dtype[np.uint8]]]

GATE_SPOTS = 128
"""Most spots of a slide that a gate looks at."""

_SATURATED = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))

FIRST_EXTREME = 2
N_EXTREMES = 2 + len(_SATURATED) + 2
"""Rows from ``FIRST_EXTREME`` on that are no tissue at all: black, white, six saturated colours, two kinds of noise."""


def probe_views(geometry: ViewGeometry, batch: int, seed: int) -> Views:
    """Views over the full range of inputs: smooth fields, and among them, from the third row on, the extremes.

    Parameters
    ----------
    geometry : ViewGeometry
    batch : int
        Rows; of fewer than 12 the last extremes are left out.
    seed : int
        One seed gives one set of views.

    Returns
    -------
    list of ndarray of uint8, one a view, each shape (batch, size_px, size_px, 3)
    """
    random = np.random.default_rng(seed)
    views = []
    for _ in geometry.names:
        coarse = random.integers(0, 256, (batch, 7, 7, 3)).astype(np.float32)
        reps = -(-geometry.size_px // 7)
        smooth = coarse.repeat(reps, axis=1).repeat(reps, axis=2)[:, : geometry.size_px, : geometry.size_px]
        noise = random.integers(-20, 21, smooth.shape)
        views.append((smooth + noise).clip(0, 255).astype(np.uint8))
    for view in views:
        noise = random.integers(0, 256, view.shape[1:], np.uint8)
        extremes: list[Any] = [0, 255, *_SATURATED, noise, (noise >= 128) * np.uint8(255)]
        for row, extreme in zip(range(FIRST_EXTREME, batch), extremes, strict=False):
            view[row] = extreme
    return views


def smooth_rows(batch: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows of :func:`probe_views` are smooth fields, shape (batch,)."""
    rows = np.arange(batch)
    return (rows < FIRST_EXTREME) | (rows >= FIRST_EXTREME + N_EXTREMES)


def slide_views(slide: Path, geometry: ViewGeometry, *, spots: Path | None = None, most: int = GATE_SPOTS) -> Views:
    """Views of a slide's spots at its own pixels.

    Parameters
    ----------
    slide : Path
        Any slide or image that a reader of this project opens.
    geometry : ViewGeometry
        The views to cut.
    spots : Path, optional
        A spot file; by default a grid over the tissue, one spot for each window of the finest view.
    most : int
        Most spots, taken evenly from all.

    Returns
    -------
    list of ndarray of uint8, one a view, each shape (n, size_px, size_px, 3)

    Raises
    ------
    SlideError
        If the slide cannot be opened.
    SpotError
        If the spot file is unusable for the slide, fewer than two spots were found, or one cannot be cut.
    """
    with Decoder(geometry) as decoder:
        path = slide.resolve()
        info = decoder.describe(path)
        if spots is not None:
            found = read_spots(spots)
            check_places(found.centers, info.size, lambda: info.thumbnail, source=str(spots), columns=found.columns)
        else:
            found = grid(info.size, tissue_mask(info.thumbnail, slide=str(slide)), geometry.size_px)
        if len(found) < 2:
            raise SpotError(
                f"{slide}: {len(found)} spots found, and r per gene needs two; give a spot file or another slide"
            )
        chosen = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).astype(int))
        centers = as_centers(found.centers[chosen])
        views = [np.empty((len(centers), *geometry.shape), np.uint8) for _ in geometry.names]
        statuses = np.zeros(len(centers), np.int32)
        for first in range(0, len(centers), MAX_ROWS):
            rows = slice(first, min(first + MAX_ROWS, len(centers)))
            scales = np.ones(rows.stop - first, np.float32)
            statuses[rows] = decoder.cut_views(path, centers[rows], scales, views, rows=rows)
    bad = np.flatnonzero(statuses != RowStatus.OK)
    if len(bad):
        name, reason = found.names[chosen[bad[0]]], RowStatus(int(statuses[bad[0]])).reason
        raise SpotError(f"{slide}: spot {name} at {centers[bad[0]].tolist()}: {reason}")
    return views
