"""Where the tissue is.

A scanner shines light through the slide. Absorbance, -log10 of the share of the light that passes, grows with the
amount of dye in its way (Beer and Lambert). Glass absorbs next to nothing; haematoxylin and eosin both absorb green
most. These two facts decide, not the shape of a histogram: a threshold such as Otsu's always parts a picture in two,
one that is all tissue into nuclei and stroma, one that is all glass into noise and noise.

Sources: Ruifrok and Johnston, Anal Quant Cytol Histol 23:291 (2001), for the absorbance of haematoxylin (0.65, 0.70,
0.29) and eosin (0.07, 0.99, 0.11) in red, green and blue; Macenko et al., ISBI 2009, for the 0.15 from where on stain
is told from glass. The remaining bounds were chosen on sections B4 and C2 of HER2+, whose spots with counts lie on
tissue, and hold on C3, C4 and C5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UnknownTissue
from ..readers.base import Pixels

MASK_PX = 1024
"""Longer side of the overview that tissue is sought on, in pixels."""

BLACK, WHITE = 30, 250
"""Levels of padding: no channel reaches ``BLACK``, or all reach ``WHITE``."""

ABOVE_GLASS = 0.05
"""Least absorbance of tissue above that of glass: 11 % less light. Uneven light and dye on the glass stay below it."""

MOST_OF_GLASS = 0.10
"""Most absorbance of glass; ``ABOVE_GLASS`` on top of it is Macenko's bound."""

MOST_OF_TISSUE = 0.60
"""Most absorbance of half of a slide's tissue: a quarter of the light passes, and sections are cut to let more."""

_ABSORBANCE = np.array([-math.log10(max(level, 1) / 255) for level in range(256)])

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Tissue:
    """What an overview tells of the tissue.

    Parameters
    ----------
    mask : ndarray of bool, shape (h, w)
        Tissue; empty where nobody can tell.
    note : str
        What whoever uses the mask has to know; else empty.
    refusal : str
        Why nobody can tell where the tissue is; else empty.
    """

    mask: Mask
    note: str = ""
    refusal: str = ""

    def known(self, slide: str) -> Mask:
        """The mask, where there is one; ``slide`` is its name for the error.

        Raises
        ------
        UnknownTissue
            If nobody can tell where the tissue is.
        """
        if self.refusal:
            raise UnknownTissue(
                slide,
                f"{self.refusal}; tissue is found on sections in haematoxylin and eosin that light was shone through. "
                "Give the spots in a file (--spots), ask for every cell of a dense map (--everywhere), or give a mask "
                "in the manifest of an archive",
            )
        return self.mask


def find_tissue(overview: Pixels) -> Tissue:
    """Look for tissue in haematoxylin and eosin on an overview of a slide.

    1. Black and white padding is left out of all that follows.
    2. Glass absorbs what the brightest hundredth of the rest absorbs. Where that is more than ``MOST_OF_GLASS`` and
       grey, the scan is dim, and is taken for brighter by so much. Where it is more and not grey, no glass is seen: the
       bound stands in for it, and the note says so.
    3. Tissue absorbs at least ``ABOVE_GLASS`` more than glass, and has the colour of the two dyes. Dust, shadows and
       ink in black, grey, green, yellow and light blue have not. Ink in red, purple and navy cannot be told from dyes.
    4. Specks are removed and gaps up to ten pixels wide closed.

    Refused is a picture without colour; and one that mostly absorbs, where that is too dark for light through a
    section, or of other colours: fluorescence, a negative, other stains. Fluorescence as bright and as purple as a
    section, and other stains of the two dyes' colours, cannot be told from one.

    Parameters
    ----------
    overview : ndarray of uint8, shape (h, w, 3)
        RGB.

    Returns
    -------
    Tissue
        The mask of a blank slide is empty, without a word.
    """
    nothing: Mask = np.zeros(overview.shape[:2], bool)
    high, low = overview.max(axis=2), overview.min(axis=2)
    scanned = (high >= BLACK) & (low < WHITE)
    if not scanned.any():
        return Tissue(nothing)
    absorbance = _ABSORBANCE[overview]
    mean = absorbance.mean(axis=2)
    # Glass, as the brightest hundredth shows it; a dim scan's absorbs too much, and is taken off everywhere.
    brightest = float(np.quantile(mean[scanned], 0.01))
    dim = _dimness(np.median(absorbance[scanned & (mean <= brightest)], axis=0))
    absorbance, mean = absorbance - dim, mean - dim
    absorbing = scanned & (mean > min(brightest, MOST_OF_GLASS) + ABOVE_GLASS)
    # The three refusals: no colour, too dark for light through a section, and other colours than the dyes'.
    speck = scanned.sum() / 100
    if absorbing.sum() > speck and np.quantile((high - low)[scanned], 0.999) <= 2:
        return Tissue(
            nothing, refusal="the picture has no colour, without which stain cannot be told from dust and ink"
        )
    if absorbing.sum() > scanned.sum() / 2:
        typical = np.median(absorbance[absorbing], axis=0)
        if typical.mean() + dim > MOST_OF_TISSUE:
            return Tissue(nothing, refusal="the picture is dark, as in fluorescence and unlike light through a section")
        if not _like_dyes(typical):
            return Tissue(nothing, refusal="most of the picture has not the colours of haematoxylin and eosin")
    dyed = absorbing & _like_dyes(absorbance)
    notes = []
    if brightest > MOST_OF_GLASS and not dim:
        notes.append("no glass is seen on the slide, and all that absorbs light as stain does is taken for tissue")
    if (absorbing & ~dyed).sum() > max(speck, dyed.sum()):
        notes.append("most of what is not glass has not the colours of haematoxylin and eosin and is left out")
    from skimage.morphology import closing, disk, opening  # half a second, which few commands need

    mask: Mask = closing(opening(dyed, disk(1)), disk(5)).astype(bool)
    return Tissue(mask, "; ".join(notes))


def _dimness(brightest: np.ndarray[Any, Any]) -> float:
    """What a dim scan's grey glass absorbs beyond ``MOST_OF_GLASS``; 0 where the brightest pixels are no such glass."""
    grey = brightest.min() >= 0.75 * brightest.max() and brightest.mean() <= MOST_OF_TISSUE / 2
    return max(0.0, float(brightest.mean()) - MOST_OF_GLASS) if grey else 0.0


def _like_dyes(absorbance: np.ndarray[Any, Any]) -> Any:
    """Whether mixtures of the two dyes absorb red, green and blue (last axis) so, give or take what cameras add."""
    red, green, blue = np.moveaxis(absorbance, -1, 0)
    # The dyes alone: red at most 0.93 and blue at most 0.41 of green, blue at least 0.45 of red; grey: all the same.
    return (np.maximum(red, blue) <= 1.2 * green) & (np.minimum(red, blue) <= 0.75 * green) & (blue >= 0.4 * red)


def tissue_mask(overview: Pixels, *, slide: str = "the slide") -> Mask:
    """The mask that :func:`find_tissue` gives.

    Parameters
    ----------
    overview : ndarray of uint8, shape (h, w, 3)
        RGB.
    slide : str
        The slide as the caller named it, for the error.

    Returns
    -------
    ndarray of bool, shape (h, w)

    Raises
    ------
    UnknownTissue
        If nobody can tell where the tissue is.
    """
    return find_tissue(overview).known(slide)


class TissueShares:
    """The share of tissue in any cells of a slide.

    Parameters
    ----------
    mask : ndarray of bool, shape (h, w)
        Tissue, on an overview of the whole slide.
    """

    def __init__(self, mask: Mask) -> None:
        self._height, self._width = mask.shape
        # Sums wrap around, and their differences do not: 4 bytes a pixel do for a mask of any size that fits.
        self._table = np.zeros((self._height + 1, self._width + 1), np.uint32)
        inner = self._table[1:, 1:]
        np.cumsum(mask, 1, np.uint32, inner)
        np.cumsum(inner, 0, np.uint32, inner)

    def between(self, x: Any, y: Any) -> np.ndarray[Any, Any]:
        """Share of tissue in the cells of a grid.

        Parameters
        ----------
        x, y : array_like of float, shapes (columns + 1,) and (rows + 1,)
            Edges of the cells, in sides of the slide; may reach beyond 1.

        Returns
        -------
        ndarray of float64, shape (rows, columns)
        """
        x = np.clip(np.round(np.asarray(x) * self._width), 0, self._width).astype(int)
        y = np.clip(np.round(np.asarray(y) * self._height), 0, self._height).astype(int)
        # A cell smaller than a mask pixel still looks at one.
        x0, y0 = np.minimum(x[:-1], self._width - 1), np.minimum(y[:-1], self._height - 1)
        x1, y1 = np.maximum(x[1:], x0 + 1), np.maximum(y[1:], y0 + 1)
        table = self._table
        total = table[np.ix_(y1, x1)] - table[np.ix_(y0, x1)] - table[np.ix_(y1, x0)] + table[np.ix_(y0, x0)]
        share: np.ndarray[Any, Any] = total / np.outer(y1 - y0, x1 - x0)
        return share


def cell_tissue(mask: Mask, span_x: float, span_y: float, columns: int, rows: int) -> np.ndarray[Any, Any]:
    """Share of tissue in every cell of a grid from a slide's first pixel on.

    Parameters
    ----------
    mask : ndarray of bool, shape (h, w)
        Tissue, on an overview of the whole slide.
    span_x, span_y : float
        Sides of the grid, in sides of the slide; over 1 where its last cells reach beyond.
    columns, rows : int
        Cells along each side.

    Returns
    -------
    ndarray of float64, shape (rows, columns)
    """
    return TissueShares(mask).between(np.arange(columns + 1) * span_x / columns, np.arange(rows + 1) * span_y / rows)
