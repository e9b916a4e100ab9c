"""Ways to get the three views of spots out of a slide file. Each begins with a file that it has not read yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openslide
from m2ost_contract import ViewGeometry
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.tiling.tiles import TilingCounts
from PIL import Image

BATCH_ROWS = 32
"""What the client sends and the server joins by default."""

GEOMETRY = ViewGeometry()
WINDOW_PX = GEOMETRY.window_px(GEOMETRY.n_views - 1)

Batch = list[Any]
"""An array of uint8 a view, each shape (n, size_px, size_px, 3); overwritten by the next batch."""

Way = Callable[[Path, Any], Iterator[Batch]]


OURS = OURS_ONE_CORE, OURS_ALL_CORES = "ours, one core", "ours, all cores"

AGAINST = {
    "OpenSlide, one core": OURS_ONE_CORE,
    "OpenSlide, all cores": OURS_ALL_CORES,
    "cuCIM batched, all cores": OURS_ALL_CORES,
    "tiatoolbox, one core": OURS_ONE_CORE,
}
"""Way of others → ours on as many cores."""


def all_cores() -> int:
    """Cores of this process's CPU set."""
    return len(os.sched_getaffinity(0))


def ways() -> dict[str, Way]:
    """Those that can run here, ours first."""
    cores = all_cores()
    found: dict[str, Way] = {
        OURS_ONE_CORE: ours,
        OURS_ALL_CORES: partial(ours, threads=cores),
        "OpenSlide, one core": with_openslide,
        "OpenSlide, all cores": partial(with_openslide, threads=cores),
    }
    if find_spec("cucim") is not None:
        found["cuCIM batched, all cores"] = with_cucim
    if find_spec("tiatoolbox") is not None:
        found["tiatoolbox, one core"] = with_tiatoolbox
    return found


def collect(batches: Iterator[Batch]) -> Batch:
    """All batches in one."""
    parts = [[view.copy() for view in batch] for batch in batches]
    return [np.concatenate(view) for view in zip(*parts, strict=True)]


def ours(
    path: Path, centers: Any, counts: TilingCounts | None = None, *, pyramid: bool = False, threads: int = 0
) -> Iterator[Batch]:
    """The tiler of the profiles for a CPU: tiles decoded once, resizes shared down a column, views in shared memory.

    Its process outlasts the run, as a server's does; to it, a slide by a new name is one that it has not read yet.
    """
    path, decoder, views = path.resolve(), kept_decoder(threads), _views(BATCH_ROWS)
    with TemporaryDirectory() as folder:
        renamed = Path(folder, "slides", path.name)
        renamed.parent.symlink_to(path.parent)
        for first in range(0, len(centers), BATCH_ROWS):
            batch = centers[first : first + BATCH_ROWS]
            out = [view[: len(batch)] for view in views]
            decoder.cut_views(renamed, batch, np.ones(len(batch), np.float32), out, counts=counts, pyramid=pyramid)
            yield out


@cache
def kept_decoder(threads: int) -> Decoder:
    """The decoder of this benchmark that has so many helping threads."""
    return Decoder(GEOMETRY, threads=threads)


def with_openslide(path: Path, centers: Any, *, threads: int = 1) -> Iterator[Batch]:
    """One ``read_region`` a spot, as large as its coarsest view, and Pillow's crops and resizes of it."""
    with openslide.OpenSlide(str(path)) as slide, ThreadPoolExecutor(threads) as pool:

        def spot(corner: tuple[int, int]) -> Batch:
            return _cut(slide.read_region(corner, 0, (WINDOW_PX, WINDOW_PX)).convert("RGB"))

        yield from pool.map(spot, (centers - WINDOW_PX // 2).tolist())


def with_cucim(path: Path, centers: Any) -> Iterator[Batch]:
    """cuCIM's own batched ``read_region``, with a worker a core, and Pillow's crops and resizes on as many threads."""
    from cucim.clara import CuImage

    image = CuImage(str(path))
    corners = (centers - WINDOW_PX // 2).tolist()
    windows = image.read_region(corners, (WINDOW_PX, WINDOW_PX), 0, batch_size=1, num_workers=all_cores())

    with ThreadPoolExecutor(all_cores()) as pool:
        # A window's memory is the next one's: it is copied before that is read.
        copies = (np.array(window)[..., :3].reshape(WINDOW_PX, WINDOW_PX, 3) for window in windows)
        yield from pool.map(lambda pixels: _cut(Image.fromarray(pixels)), copies)
    image.close()


def with_tiatoolbox(path: Path, centers: Any) -> Iterator[Batch]:
    """tiatoolbox's patch extractor for points, patches as large as the coarsest view, and Pillow's resizes."""
    from tiatoolbox.tools.patchextraction import get_patch_extractor

    extractor = get_patch_extractor(
        "point",
        input_img=str(path),
        locations_list=np.asarray(centers),
        patch_size=(WINDOW_PX, WINDOW_PX),
        resolution=0,
        units="level",
        pad_mode="constant",
    )
    for window in extractor:
        yield _cut(Image.fromarray(np.asarray(window)[..., :3]))


def _views(rows: int) -> Batch:
    return [np.zeros((rows, *GEOMETRY.shape), np.uint8) for _ in GEOMETRY.names]


def _cut(window: Image.Image) -> Batch:
    size, views = GEOMETRY.size_px, []
    for i in range(GEOMETRY.n_views):
        side = GEOMETRY.window_px(i)
        inset = WINDOW_PX // 2 - side // 2
        crop = window.crop((inset, inset, inset + side, inset + side))
        view = crop if side == size else crop.resize((size, size), Image.Resampling.BILINEAR)
        views.append(np.asarray(view)[None])
    return views
