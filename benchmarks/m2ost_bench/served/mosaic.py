"""A slide as large as is asked for, made of the tissue of a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from m2ost_contract import complete_file
from m2ost_loadtests.errors import TargetError
from m2ost_preprocess.decoder import decoded_slide
from m2ost_preprocess.slides.tissue import MASK_PX, tissue_mask

TILE_PX = 256
QUALITY = 90
MOST_TILES = 256
"""Different tiles that are taken from the slide."""


def write_mosaic(slide: Path, destination: Path, side_px: int, *, seed: int = 0) -> int:
    """Write a tiled JPEG TIFF whose every tile is one of a slide's that lie on tissue.

    Parameters
    ----------
    slide : Path
        Of at least one tile of 256 px that is tissue throughout.
    destination : Path
    side_px : int
        Width and height.
    seed : int
        Tiles are drawn by chance.

    Returns
    -------
    int
        How many different tiles there are.

    Raises
    ------
    TargetError
        If no tile of the slide is tissue throughout.
    """
    kinds = _tissue_tiles(slide)
    if not kinds:
        raise TargetError(f"{slide}: no tile of {TILE_PX} px is tissue throughout; give a slide with more tissue")
    across = -(-side_px // TILE_PX)
    chosen = np.random.default_rng(seed).integers(0, len(kinds), across * across)

    def tiles() -> Iterator[bytes]:
        for kind in chosen:
            yield kinds[kind]

    with complete_file(destination) as scratch, tifffile.TiffWriter(scratch, bigtiff=True) as file:
        file.write(
            tiles(),
            shape=(side_px, side_px, 3),
            dtype=np.uint8,
            tile=(TILE_PX, TILE_PX),
            compression="jpeg",
            photometric="ycbcr",
            subsampling=(2, 2),
            metadata=None,
        )
    return len(kinds)


def _tissue_tiles(slide: Path) -> list[bytes]:
    """Tiles of the slide that are tissue throughout, evenly from all, each as a JPEG."""
    with decoded_slide(slide) as source:
        width, height = source.size
        mask = tissue_mask(source.thumbnail(MASK_PX))
        rows, columns = mask.shape

        def covered(left: int, top: int) -> bool:
            y = slice(top * rows // height, -(-(top + TILE_PX) * rows // height))
            x = slice(left * columns // width, -(-(left + TILE_PX) * columns // width))
            return bool(mask[y, x].all())

        places = [
            (left, top)
            for top in range(0, height - TILE_PX + 1, TILE_PX)
            for left in range(0, width - TILE_PX + 1, TILE_PX)
            if covered(left, top)
        ]
        taken = places[:: max(1, len(places) // MOST_TILES)][:MOST_TILES]
        pixels = (source.read(left, top, TILE_PX, TILE_PX) for left, top in taken)
        return [
            simplejpeg.encode_jpeg(np.ascontiguousarray(tile), QUALITY, colorspace="RGB", colorsubsampling="420")
            for tile in pixels
        ]
