"""One slide behind a decoder, with the part of a reader's face that reads pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from m2ost_contract import MAX_ROWS, RowStatus, ViewGeometry
from PIL import Image

from ..errors import SpotError
from ..readers.base import Pixels
from ..tiling.views import Centers
from .process import Decoder
from .protocol import Slide, SlideInfo


class DecodedSlide:
    """Pixels, views and overview of a slide that a child process decodes.

    All methods raise what those of :class:`Decoder` do; so does this, where the slide cannot be opened.

    Parameters
    ----------
    decoder : Decoder
    path : Path or RootedSlide
        The slide's file, already resolved; or the slide of a request.
    info : SlideInfo, optional
        What the decoder said of it: spares :meth:`thumbnail` the decoder.

    Attributes
    ----------
    path : Path or RootedSlide
        As given.
    size : (int, int)
        Width and height of level 0 in pixels.
    mpp : float or None
        µm per level-0 pixel, where the file carries it.
    reader : str
        What reads it.
    tile : (int, int) or None
        Width and height of the compressed tiles of level 0 in pixels; None where the whole image is decoded at once.
    """

    def __init__(self, decoder: Decoder, path: Slide, info: SlideInfo | None = None) -> None:
        self._decoder, self.path, self._info = decoder, path, info
        opened = decoder.open(path)
        self.size, self.mpp, self.reader, self.tile = opened.size, opened.mpp, opened.reader, opened.tile

    def read(self, left: int, top: int, width: int, height: int) -> Pixels:
        """Level-0 pixels of a rectangle that lies inside the slide; see :meth:`Decoder.read`."""
        return self._decoder.read(self.path, left, top, width, height)

    def thumbnail(self, max_px: int) -> Pixels:
        """The whole slide, made small: its longer side at most ``max_px``, and that of ``SlideInfo.thumbnail``."""
        if self._info is None:
            return self._decoder.thumbnail(self.path, max_px)
        image = Image.fromarray(self._info.thumbnail)
        image.thumbnail((max_px, max_px), Image.Resampling.BOX)
        return np.asarray(image)

    def views(self, centers: Centers, scale: float = 1.0) -> list[Pixels]:
        """Views of spots; see :meth:`Decoder.cut_views`.

        Parameters
        ----------
        centers : ndarray of int32, shape (n, 2)
            x, y: floor of the spot's centre in level-0 pixels; neighbours share what is decoded.
        scale : float
            Level-0 pixels per view pixel of the finest view.

        Returns
        -------
        list of ndarray of uint8, one a view, each shape (n, size_px, size_px, 3)
            RGB.

        Raises
        ------
        SpotError
            If a spot has no views; says which, and why.
        """
        geometry, n = self._decoder.geometry, len(centers)
        out = [np.empty((n, *geometry.shape), np.uint8) for _ in geometry.names]
        scales, statuses = np.full(n, scale, np.float32), np.zeros(n, np.int32)
        for first in range(0, n, MAX_ROWS):
            rows = slice(first, min(first + MAX_ROWS, n))
            statuses[rows] = self._decoder.cut_views(self.path, centers[rows], scales[rows], out, rows)
        bad = np.flatnonzero(statuses != RowStatus.OK)
        if len(bad):
            x, y = centers[bad[0]].tolist()
            raise SpotError(f"{self.path.name}: spot at x {x}, y {y}: {RowStatus(int(statuses[bad[0]])).reason}")
        return out


@contextmanager
def decoded_slide(
    path: Path, *, geometry: ViewGeometry | None = None, threads: int | None = None
) -> Iterator[DecodedSlide]:
    """A slide behind a decoder of its own, which ends with the context.

    Parameters
    ----------
    path : Path
        The slide's file, or its folder.
    geometry : ViewGeometry, optional
        Of :meth:`DecodedSlide.views`.
    threads : int, optional
        See :class:`Decoder`.

    Yields
    ------
    DecodedSlide
    """
    with Decoder(geometry, threads=threads) as decoder:
        yield DecodedSlide(decoder, path.resolve())
