"""Whether positions can be level-0 pixels of a slide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import SpotError
from ..readers.base import Pixels
from .spot_columns import LEVEL0, SpotCenters
from .spots import median_pitch_px
from .tissue import Mask, find_tissue

FEW = 10
"""Fewer spots may lie anywhere: they say nothing of how a table was made."""

LEAST_PITCH_PX = 2.0
"""Neighbours on an array are 1 or √2 apart in its own places; nobody scores a tissue that densely in pixels."""

MOST_ARRAY, MANY = 128, 50
"""Places of ST and Visium arrays lie below the first; those of Visium HD lie above, and are many."""

DOWNSCALED_SIDES_PX = (600, 2000, 4000, 6000)
"""Longer side of Space Ranger's images of low and high resolution."""

_REDUCTIONS = (2, 4, 8, 16, 32, 64)
_OFF_TISSUE, _LEAST_SPAN = 0.1, 0.25
_ON_TISSUE, _MORE_THAN_AROUND, _ALL_BUT_ALL = 0.5, 1.3, 0.9


def check_places(
    centers: SpotCenters,
    size: tuple[int, int],
    overview: Callable[[], Pixels],
    *,
    source: str,
    columns: Sequence[str],
) -> None:
    """Refuse positions that are no level-0 pixels of the slide: they would be scored, and every value be wrong.

    Refused are:

    - *outside*: all spots lie outside the slide, or most of 10 or more. Of fewer, a stray one gets its status.
    - *places on an array*: the spots lie in the first half of both sides, at distances of under 2 px in the median
      (positions that are there twice count once), and are 50 or more or lie within the first 128 px. Arrays number
      their places from 0 or 1 in steps of 1; views of neighbours that are closer than 2 px show the same.
    - *pixels of a smaller image*: 10 or more spots lie in the first half of both sides and at most a tenth of them on
      tissue; and there is a usual reduction of a slide (2, 4, … 64, or to an image of Space Ranger) which, taken back,
      lets them span a quarter of both sides and follow the tissue: half of them lie on it, and 1.3 times the share of
      tissue in the rectangle around them; or nine tenths do. (Of real sections of ST 60 to 94 % do, 1.5 times that
      share; of spots in a corner of glass about one set in a hundred does by chance.) Distances do not tell: those in
      an image of Space Ranger are those of a dense grid.

    So everything on tissue at 2 px or more is accepted: a region, a dense grid, a single spot, a few at one place.
    Positions in columns ``level0_x, level0_y`` only have to lie inside: the table says itself whose pixels they are.

    Parameters
    ----------
    centers : ndarray of float64, shape (n, 2)
        x, y as read.
    size : (int, int)
        Width and height of the slide in level-0 pixels.
    overview : callable
        Gives the whole slide made small, RGB; called only where the third rule may apply.
    source : str
        Where the positions come from, for messages.
    columns : sequence of str
        Where the source has x and y.

    Raises
    ------
    SpotError
        Says what was found and how to go on.
    """
    if not len(centers):
        return
    low, high = centers.min(axis=0), centers.max(axis=0)
    found = (
        f"{source}: {', '.join(columns)} from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}) on a slide of "
        f"{size[0]}×{size[1]} px"
    )
    outside = int((~((centers >= 0) & (centers < size)).all(axis=1)).sum())
    if outside == len(centers) or (len(centers) >= FEW and 2 * outside > len(centers)):
        raise SpotError(
            f"{found}: {outside} of {len(centers)} spots lie outside; give the file of this slide, its positions in "
            "level-0 pixels"
        )
    if tuple(columns) == LEVEL0 or not (high < np.array(size) / 2).all():
        return
    remedy = "give them in level-0 pixels; if they are, name the columns level0_x and level0_y"
    # The second rule, on places counted once.
    distinct = np.unique(centers, axis=0)
    pitch_px = median_pitch_px(distinct)
    if 0 < pitch_px < LEAST_PITCH_PX and (len(distinct) >= MANY or high.max() < MOST_ARRAY):
        raise SpotError(f"{found}, {pitch_px:.2g} px apart: these look like places on an array; {remedy}")
    if len(distinct) >= FEW:
        factor = _reduction(distinct, size, find_tissue(overview()).mask)
        if factor is not None:
            raise SpotError(
                f"{found}: they lie off the tissue, and on it when multiplied by {factor:.4g}: these look like pixels "
                f"of a smaller image; {remedy}"
            )


def _reduction(centers: SpotCenters, size: tuple[int, int], mask: Mask) -> float | None:
    """By what positions off the tissue come to lie on it, if by anything usual."""
    if _on_tissue(centers, size, mask) > _OFF_TISSUE:
        return None
    high, span = centers.max(axis=0), np.ptp(centers, axis=0)
    # Reductions that, taken back, keep all spots on the slide and let them span enough of it.
    shares = {
        factor: _on_tissue(centers * factor, size, mask)
        for factor in (*(max(size) / side for side in DOWNSCALED_SIDES_PX), *_REDUCTIONS)
        if (high * factor <= size).all() and (span * factor >= np.multiply(size, _LEAST_SPAN)).all()
    }
    best = max(shares, key=lambda factor: shares[factor], default=None)
    if best is None:
        return None
    around = _tissue_around(centers * best, size, mask)
    follows = shares[best] >= max(_ON_TISSUE, _MORE_THAN_AROUND * around) or shares[best] >= _ALL_BUT_ALL
    return best if follows else None


def _on_tissue(centers: SpotCenters, size: tuple[int, int], mask: Mask) -> float:
    """Share of the positions that lie on tissue."""
    height, width = mask.shape
    place = np.floor(centers / size * (width, height)).astype(int)
    place = place[((place >= 0) & (place < (width, height))).all(axis=1)]
    return float(mask[place[:, 1], place[:, 0]].sum() / len(centers))


def _tissue_around(centers: SpotCenters, size: tuple[int, int], mask: Mask) -> float:
    """Share of tissue in the rectangle around positions."""
    scale = np.divide(mask.shape[::-1], size)
    left, top = np.floor(centers.min(axis=0) * scale).astype(int)
    right, bottom = np.floor(centers.max(axis=0) * scale).astype(int) + 1
    return float(mask[top:bottom, left:right].mean())
