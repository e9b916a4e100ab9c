"""Which reader can be trusted with which TIFF, told from its directories. Found out by comparing with the truth."""

from __future__ import annotations

from .sound import ADOBE_DEFLATE, APERIO_JP2K_RGB, APERIO_JP2K_YCBCR, DEFLATE, JPEG, LZW, RAW
from .tiff import Directory, TiffLayout

SUFFIXES = (".svs", ".tif", ".tiff")
"""Names that cuCIM takes for TIFF; it looks at nothing else."""

_RGB, _YCBCR = 2, 6
_NO_PREDICTOR = 1


def cucim_obstacle(layout: TiffLayout) -> str | None:
    """Why cuCIM cannot be trusted with a file; None where it gives the file's pixels, or says that it cannot."""
    if layout.path.suffix not in SUFFIXES:
        return f"cuCIM opens names that end in {', '.join(SUFFIXES)} alone"
    for image in layout.images:
        words = _cucim_obstacle_of(image) if image.tiled else None
        if words is not None:
            return f"cuCIM does not read {words}"
    return None


def _cucim_obstacle_of(image: Directory) -> str | None:
    if image.samples != 3 or image.planar != 1 or image.bits != {8}:
        return "tiles that are not 8-bit RGB, pixel by pixel"
    if image.photometric != _RGB and not (image.photometric == _YCBCR and image.compression == JPEG):
        return "other colours than RGB and JPEG's"
    if image.compression not in (RAW, LZW, JPEG, ADOBE_DEFLATE, DEFLATE, APERIO_JP2K_RGB):
        return f"TIFF compression {image.compression} exactly"
    if image.compression in (ADOBE_DEFLATE, DEFLATE) and image.predictor != _NO_PREDICTOR:
        return "Deflate with a predictor"
    return None


def openslide_obstacle(layout: TiffLayout) -> str | None:
    """Why OpenSlide cannot be trusted with a TIFF; None where it can, or says that it cannot."""
    main = layout.main
    if main.orientation != 1 and main.compression not in (JPEG, APERIO_JP2K_RGB, APERIO_JP2K_YCBCR):
        return "OpenSlide turns each tile by itself where a TIFF has an orientation"
    return None
