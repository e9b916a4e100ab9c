"""cuCIM: Aperio SVS, Philips TIFF and generic tiled TIFF, as far as it gives the pixels that are in the file."""

from __future__ import annotations

import contextlib
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
from cucim.clara import CuImage

from ..errors import UnreadableSlide
from . import native_errors
from .base import Pixels, Size, SlideReader, words_of
from .sound import JPEG
from .tiff import TiffLayout


class CuCimReader(SlideReader):
    """A slide opened by cuCIM, given its directories. Tiles that the file leaves out are white.

    Raises ``UnreadableSlide`` where cuCIM cannot open the file or has something to say about it, or its pixels are not
    8-bit RGB.
    """

    name = "cucim"

    def __init__(self, path: Path, layout: TiffLayout) -> None:
        self.path, self._layout = path, layout
        self._one_at_a_time = threading.Lock()
        self._thread_safe_levels: set[int] = set()
        began = native_errors.mark()
        try:
            self._image = CuImage(str(path))
        except (RuntimeError, ValueError, OSError) as error:
            raise UnreadableSlide(path.name, f"cuCIM cannot open it: {words_of(error, path)}") from error
        complaint = native_errors.complaint(began)
        if complaint is not None:
            raise UnreadableSlide(path.name, f"cuCIM cannot be trusted with it: {complaint}")
        if self._image.channel_names[:3] != ["R", "G", "B"] or self._image.dtype.bits != 8:
            raise UnreadableSlide(path.name, "cuCIM does not find 8-bit RGB in it")
        resolutions = self._image.resolutions
        self._levels: list[Size] = [(int(w), int(h)) for w, h in resolutions["level_dimensions"]]
        self._tile_sizes: list[Size] = [(int(w), int(h)) for w, h in resolutions["level_tile_sizes"]]
        self.size = self._levels[0]

    def _region(self, left: int, top: int, width: int, height: int, level: int, device: str = "cpu") -> Any:
        began = native_errors.mark()
        try:
            # What libtiff converts for cuCIM, into four channels, goes through a handle that threads must not share.
            with contextlib.nullcontext() if level in self._thread_safe_levels else self._one_at_a_time:
                region = self._image.read_region((left, top), (width, height), level, device=device)
            # Three channels come from cuCIM's own decoders, four from libtiff's conversion.
            if region.shape[-1] == 3:
                self._thread_safe_levels.add(level)
            pixels = region if device == "cuda" else np.ascontiguousarray(np.asarray(region)[..., :3])
        except (RuntimeError, ValueError, OSError) as error:
            raise UnreadableSlide(
                self.path.name, f"cuCIM cannot decode x {left}, y {top}: {words_of(error, self.path)}"
            ) from error
        complaint = native_errors.complaint(began)
        if complaint is not None:
            raise UnreadableSlide(self.path.name, f"cuCIM cannot decode x {left}, y {top}: {complaint}")
        return pixels

    def read_at(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        # Places are given on level 0 and truncated to the level's pixels: from the middle of a pixel it is that pixel.
        x, y = (
            at if level == 0 else math.floor((at + 0.5) * full / own)
            for at, full, own in zip((left, top), self.size, self._levels[level], strict=True)
        )
        pixels: Pixels = self._region(x, y, width, height, level)
        return self._layout.paint_missing(pixels, self._levels[level], left, top)

    @property
    def decodes_on_gpu(self) -> bool:
        # Of tiles that are no JPEG its decoder for GPUs ends the process.
        main = self._layout.main
        return main.compression == JPEG and not main.has_missing

    def tile_size(self, level: int) -> Size:
        return self._tile_sizes[level]

    def read_on_gpu(self, left: int, top: int, width: int, height: int) -> Any:
        return self._region(left, top, width, height, 0, "cuda")

    @property
    def levels(self) -> list[Size]:
        return self._levels

    @property
    def resident_bytes(self) -> int:
        return 0

    def close(self) -> None:
        self._image.close()
