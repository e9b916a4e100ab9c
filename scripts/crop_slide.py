"""Write the middle of a slide as PNG: real pixels for a machine where no library reads slides.

Usage: python scripts/crop_slide.py SLIDE OUT.png [SIDE_PX]
"""

from __future__ import annotations

import sys
from pathlib import Path

from m2ost_preprocess.decoder import decoded_slide
from PIL import Image


def main(slide: str, destination: str, side_px: str = "2048") -> None:
    """Crop at most ``side_px`` squared."""
    with decoded_slide(Path(slide), threads=0) as source:
        width, height = (min(int(side_px), length) for length in source.size)
        left, top = (source.size[0] - width) // 2, (source.size[1] - height) // 2
        Image.fromarray(source.read(left, top, width, height)).save(destination)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit((__doc__ or "").strip())
    main(*sys.argv[1:])
