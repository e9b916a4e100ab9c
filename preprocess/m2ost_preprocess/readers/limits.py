"""What a file may claim: looked at in its headers, before anything is allocated or decoded by what they say."""

from __future__ import annotations

from pathlib import Path

from .companions import opened_files

MAX_IMAGE_PX = (2 << 30) // 3
"""Largest image that is decoded whole: 2 GiB of RGB. Decoding takes 2.4 times as much for a moment."""

MAX_TILE_BYTES = 64 << 20
"""Largest tile, decoded."""

MAX_TILES = 1 << 22
"""Most tiles of one level: of 256 px, a square of 524,288 px."""

MAX_OVERVIEW_PX = 10**10
"""Most pixels that an overview is made of. Decoding them takes 3 minutes of cuCIM's time, and more of OpenSlide's."""

ALWAYS_PX = 1 << 26
"""Pixels that a file of any size may claim."""

MAX_PX_PER_BYTE = 1000
"""Most pixels that a larger claim may have for each byte of the file; blank RGB has 344 under Deflate, tissue 30."""


def implausible(pixels: int, path: Path) -> str | None:
    """Why the files that a slide's reader opens cannot hold as many pixels as it claims; None where they can."""
    if pixels <= ALWAYS_PX:
        return None
    size = sum(file.stat().st_size for file in opened_files(path) if file.is_file())
    if pixels <= size * MAX_PX_PER_BYTE:
        return None
    return f"{pixels} px in {size} bytes, over {MAX_PX_PER_BYTE} px a byte, are no picture of tissue; check the file"
