"""cuCIM: Aperio SVS, Philips TIFF and generic tiled TIFF."""

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
from .base import Pixels, Resolution, SlideReader

_JPEG = 7
"""TIFF's number of that compression."""


class CuCimReader(SlideReader):
    """A slide opened by cuCIM.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    UnreadableSlide
        If cuCIM cannot open the file or its pixels are not 8-bit RGB.
    """

    name = "cucim"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._one_at_a_time = threading.Lock()
        self._thread_safe_levels: set[int] = set()
        try:
            self._image = CuImage(str(path))
        except (RuntimeError, ValueError, OSError) as error:
            raise UnreadableSlide(path.name, f"cuCIM cannot open it: {error}") from error
        if self._image.channel_names[:3] != ["R", "G", "B"] or self._image.dtype.bits != 8:
            raise UnreadableSlide(path.name, "pixels are not 8-bit RGB")
        resolutions = self._image.resolutions
        self._levels: list[tuple[int, int]] = [(int(w), int(h)) for w, h in resolutions["level_dimensions"]]
        self._tile_sizes: list[tuple[int, int]] = [(int(w), int(h)) for w, h in resolutions["level_tile_sizes"]]
        self.size = self._levels[0]
        self.resolution = self._resolution()

    def _resolution(self) -> Resolution | None:
        # spacing() is (1, 1) for SVS whatever the slide: its figure stands in the Aperio header alone.
        aperio = self._image.metadata.get("aperio")
        if aperio is not None:
            return Resolution.from_tag(aperio.get("MPP"), aperio.get("MPP"), "aperio.MPP")
        spacing, units = self._image.spacing(), self._image.spacing_units()
        if units[:2] != ["micrometer", "micrometer"]:
            return None
        # cuCIM holds the spacing as float32; what the tag said is the shortest decimal that rounds to it.
        y, x = (float(str(np.float32(v))) for v in spacing[:2])
        return Resolution.from_tag(x, y, "tiff.resolution")

    def _region(self, left: int, top: int, width: int, height: int, level: int, device: str = "cpu") -> Any:
        began = native_errors.mark()
        try:
            # What libtiff converts for cuCIM, into four channels, goes through a handle that threads must not share.
            with contextlib.nullcontext() if level in self._thread_safe_levels else self._one_at_a_time:
                region = self._image.read_region((left, top), (width, height), level, device=device)
            if region.shape[-1] == 3:
                self._thread_safe_levels.add(level)
            pixels = region if device == "cuda" else np.ascontiguousarray(np.asarray(region)[..., :3])
        except (RuntimeError, ValueError, OSError) as error:
            raise UnreadableSlide(self.path.name, f"cuCIM cannot decode x {left}, y {top}: {error}") from error
        printed = native_errors.since(began).splitlines()
        failure = next((line.strip() for line in printed if _tells_of_failure(line)), None)
        if failure is not None:
            raise UnreadableSlide(self.path.name, f"cuCIM cannot decode x {left}, y {top}: {failure}")
        return pixels

    def read_at(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        # Places are given on level 0 and truncated to the level's pixels: from the middle of a pixel it is that pixel.
        x, y = (
            at if level == 0 else math.floor((at + 0.5) * full / own)
            for at, full, own in zip((left, top), self.size, self._levels[level], strict=True)
        )
        pixels: Pixels = self._region(x, y, width, height, level)
        return pixels

    @property
    def decodes_on_gpu(self) -> bool:
        # Of tiles that are no JPEG its decoder for GPUs ends the process.
        return _compression(self.path) == _JPEG

    def tile_size(self, level: int) -> tuple[int, int]:
        return self._tile_sizes[level]

    def read_on_gpu(self, left: int, top: int, width: int, height: int) -> Any:
        return self._region(left, top, width, height, 0, "cuda")

    @property
    def levels(self) -> list[tuple[int, int]]:
        return self._levels

    @property
    def resident_bytes(self) -> int:
        return 0

    def close(self) -> None:
        self._image.close()


def _compression(path: Path) -> int:
    """TIFF's number of how level 0 is compressed; 0 where that cannot be told."""
    import tifffile  # slow to load, and asked for where there is a GPU

    try:
        with tifffile.TiffFile(path) as file:
            return int(file.pages.first.compression)
    except (tifffile.TiffFileError, ValueError, OSError):
        return 0


def _tells_of_failure(line: str) -> bool:
    # With no GPUDirect Storage a file is read by other means, after a line that calls this an error.
    return "ERROR" in line.upper() and "compatibility mode" not in line
