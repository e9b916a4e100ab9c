"""Which spots of a slide are scored: a grid on a mask, and those in a region. One way for predict and rescore."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from m2ost_contract import as_centers
from m2ost_preprocess.decoder import SlideInfo
from m2ost_preprocess.slides.rectangle import Rectangle
from m2ost_preprocess.slides.spots import Spots, grid

from .errors import InputError
from .masks import read_mask


def grid_on_mask(path: Path, slide: SlideInfo, pitch_um: float) -> Spots:
    """A grid over what a mask does not leave black: the cells that are at least half in it.

    Parameters
    ----------
    path : Path
        The mask: see :mod:`m2ost_client.masks`.
    slide : SlideInfo
        The slide that it is of.
    pitch_um : float
        Pitch of the grid in µm.

    Raises
    ------
    InputError
        If µm/px of the slide is unknown, the mask cannot be used, or no cell is in it.
    """
    if slide.mpp is None:
        raise InputError("a grid in µm needs the slide's µm/px and it has none; give --mpp, or mpp in the list")
    mask = read_mask(path, slide.size)
    spots = grid(slide.size, mask, pitch_um / slide.mpp)
    if not len(spots):
        raise InputError(
            f"{path}: of no cell of the grid, {pitch_um:g} µm wide, is at least half in the mask, so that no "
            "spot is scored; choose a smaller pitch_um or a larger mask"
        )
    floored = as_centers(spots.centers).astype(np.float64)
    return Spots(floored, spots.names, spots.pitch_px, f"grid on a mask, pitch {pitch_um:g} µm")


def spots_within(spots: Spots, region: Rectangle, slide_size: tuple[int, int]) -> Spots:
    """The spots whose centres lie in a region.

    Parameters
    ----------
    spots : Spots
    region : Rectangle
    slide_size : (int, int)
        Width and height of the slide in level-0 pixels.

    Raises
    ------
    InputError
        If there are spots, and none lies in it.
    SpotError
        If the region lies outside the slide.
    """
    region = region.within(slide_size)
    found = spots.within(region)
    if len(spots) and not len(found):
        (left, top), (right, bottom) = spots.centers.min(axis=0), spots.centers.max(axis=0)
        raise InputError(
            f"region {region}: none of the {len(spots):,} spots ({spots.source}) lies in it; they lie in x {left:.0f} "
            f"to {right:.0f}, y {top:.0f} to {bottom:.0f}; choose another region"
        )
    return found
