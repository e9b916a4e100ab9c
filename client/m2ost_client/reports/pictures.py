"""Pictures small enough to travel inside a page."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from ..maps import pca_rgb
from ..results import SlideResult

SLIDE_PX = 1024
"""Longer side of the slide's picture in its own page, in pixels."""
THUMBNAIL_PX = 96
"""Longer side of a slide's picture in the index, in pixels."""


def data_uri(content: bytes, mime: str) -> str:
    """Bytes as a ``data:`` address."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def slide_picture(thumbnail: Any, longest_px: int, quality: int) -> tuple[str, tuple[int, int]]:
    """A slide's overview, as WebP in a ``data:`` address.

    Parameters
    ----------
    thumbnail : ndarray of uint8, shape (h, w, 3)
    longest_px : int
        Its longer side is at most this.
    quality : int
        Of WebP, 0 to 100.

    Returns
    -------
    str
    (int, int)
        Width and height in pixels.
    """
    picture = Image.fromarray(np.ascontiguousarray(thumbnail))
    picture.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=quality, method=4)
    return data_uri(stream.getvalue(), "image/webp"), picture.size


def component_colours(result: SlideResult) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The first principal components of the valid spots as RGB, shape (n, 3): see :func:`m2ost_client.maps.pca_rgb`."""
    return np.round(pca_rgb(result.expression[result.status == 0]) * 255).astype(np.uint8)


def overlay(result: SlideResult, colours: Any, size: tuple[int, int]) -> str:
    """The valid spots as squares on a transparent ground, as PNG in a ``data:`` address.

    Parameters
    ----------
    result : SlideResult
    colours : ndarray of uint8, shape (n, 3)
        RGB of each valid spot.
    size : (int, int)
        Width and height of the picture in pixels.
    """
    picture = Image.new("RGBA", size)
    draw = ImageDraw.Draw(picture)
    scale = np.array(size) / result.slide.size
    half = result.spot_diameter_px / 2
    centers = result.spots.centers[result.status == 0]
    first = np.floor((centers - half) * scale)
    last = np.ceil((centers + half) * scale) - 1  # a rectangle's corners are part of it
    for corner, opposite, colour in zip(first.tolist(), last.tolist(), colours.tolist(), strict=True):
        draw.rectangle((*corner, *opposite), fill=(*colour, 255))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return data_uri(stream.getvalue(), "image/png")


def colour_table() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The colour map of the gene maps, shape (255, 3)."""
    return np.round(matplotlib.colormaps["magma"](np.linspace(0, 1, 255))[:, :3] * 255).astype(np.uint8)
