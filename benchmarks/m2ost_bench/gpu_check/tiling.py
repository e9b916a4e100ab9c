"""The tiler on the device: Pillow's resize as array code, and views from a slide, exact before fast."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from m2ost_contract import MAX_ROWS, ViewGeometry
from m2ost_preprocess.decoder import DecodedSlide, Decoding
from m2ost_preprocess.decoder.protocol import Slide
from m2ost_preprocess.tiling.resample import resize
from m2ost_preprocess.tiling.tiles import TilingCounts
from m2ost_serving import devices
from m2ost_serving.tiler import ArrayTiler, PillowTiler, Tiler
from PIL import Image

from .device import Device, Pace, time_on, times_as_fast
from .inputs import spots_on
from .parts import Outcome

SCALES = (0.37, 0.5, 1.0, 1.38)


def on_host(array: Any) -> Any:
    """A NumPy array of an array of NumPy or CuPy."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def check_resize(outcome: Outcome, device: Device, slide: DecodedSlide, pace: Pace) -> None:
    """Compare with Pillow on real pixels, and time both: nanoseconds a window pixel, on windows in memory."""
    arrays = device.arrays()
    with arrays.current():
        _check_resize(outcome, device, arrays, slide, pace)


def _check_resize(outcome: Outcome, device: Device, arrays: devices.Device, slide: DecodedSlide, pace: Pace) -> None:
    geometry = ViewGeometry()
    n = 8 if device.kind == "cuda" else 2
    runs: dict[str, Callable[[], object]] = {}
    pixels: dict[str, int] = {}
    differing = 0
    for scale in SCALES:
        for view in range(geometry.n_views):
            side = geometry.window_px(view, scale)
            windows = _windows(slide, side, n)
            there = arrays.xp.asarray(windows)
            found = on_host(resize(arrays.xp, there, geometry.size_px))
            differing += int(np.count_nonzero(found != _by_pillow(windows, geometry.size_px)))
            if scale == 1.0 and side != geometry.size_px:
                key = f"{side}px_to_{geometry.size_px}px"
                runs[f"array_{key}"] = partial(resize, arrays.xp, there, geometry.size_px)
                runs[f"pillow_{key}"] = partial(_by_pillow, windows, geometry.size_px)
                pixels[key] = windows.size // 3
    outcome.expect(differing == 0, f"{differing} values differ from Pillow's")
    seconds = time_on(device, runs, pace)
    outcome.figures.update(
        differing_values=differing,
        ns_per_window_px={name: 1e9 * median(s) / pixels[name.split("_", 1)[1]] for name, s in seconds.found.items()},
        array_module=arrays.xp.__name__,
    )
    for key in pixels:
        outcome.figures[f"times_as_fast_as_pillow_{key}"] = times_as_fast(seconds, f"pillow_{key}")[f"array_{key}"]


def _windows(slide: DecodedSlide, side: int, n: int) -> Any:
    """Windows around the middle, uint8, shape (n, side, side, 3); a slide smaller than that is repeated."""
    width, height = (min(side + 5 * n, length) for length in slide.size)
    pixels = slide.read((slide.size[0] - width) // 2, (slide.size[1] - height) // 2, width, height)
    along = np.arange(side)
    return np.stack([pixels.take(along + 5 * i, 0, mode="wrap").take(along + 3 * i, 1, mode="wrap") for i in range(n)])


def _by_pillow(windows: Any, size_px: int) -> Any:
    return np.stack(
        [np.asarray(Image.fromarray(w).resize((size_px, size_px), Image.Resampling.BILINEAR)) for w in windows]
    )


def check_tiler(
    outcome: Outcome, device: Device, slide: DecodedSlide, spots: int, rates: dict[str, Any], pace: Pace
) -> None:
    """Compare with Pillow's tiler, which cuts views as defined, at several scales; and time both, decoding included.

    ``rates`` are those of :func:`~.rates.measure_rates`: pixels that come to the device are given as a share of them.
    """
    geometry = ViewGeometry()
    centers, path = spots_on(slide.size, min(spots, MAX_ROWS)), slide.path
    decodings: list[Decoding] = []
    tiler = ArrayTiler(geometry, device.arrays(), on_decoding=lambda _, decoding: decodings.append(decoding))
    pillow = PillowTiler(geometry)
    try:
        worst, differing, values = 0, 0, 0
        for scale in SCALES:
            few = centers[: 8 if scale != 1.0 else len(centers)]
            for found, expected in zip(cut(tiler, path, few, scale), cut(pillow, path, few, scale), strict=True):
                difference = np.abs(on_host(found).astype(np.int16) - expected)
                worst, differing = max(worst, int(difference.max())), differing + int(np.count_nonzero(difference))
                values += difference.size
        decoded_on_gpu = any(decoding.device == "gpu" for decoding in decodings)
        outcome.expect(worst <= 1, f"views differ from Pillow's by up to {worst} grey levels")
        outcome.expect(decoded_on_gpu or differing == 0, f"{differing} values differ although the CPU decoded")
        runs = {"array": lambda: cut(tiler, path, centers), "pillow": lambda: cut(pillow, path, centers)}
        seconds = time_on(device, runs, pace)
        counts = TilingCounts()
        cut(tiler, path, centers, counts=counts)
    finally:
        tiler.close()
        pillow.close()
    uploaded = counts.moved_bytes - len(centers) * geometry.n_views * math.prod(geometry.shape)
    outcome.figures.update(
        max_abs_diff=worst,
        share_of_values_that_differ=differing / values,
        decoding=[vars(decoding) for decoding in decodings],
        spots=len(centers),
        spots_per_s={name: len(centers) / median(values) for name, values in seconds.found.items()},
        times_as_fast_as_pillow=times_as_fast(seconds, "pillow")["array"],
        uploaded_bytes=uploaded,
        included="regions out of tiles that are kept decoded, cutting, views ready on the device (array) or the host",
    )
    copy = rates.get("copy_pinned_to_device_gb_per_s", rates.get("copy_device_to_device_gb_per_s"))
    if copy is not None:
        outcome.figures["share_of_copy_rate"] = uploaded / 1e9 / median(seconds.found["array"]) / copy


def cut(tiler: Tiler, slide: Slide, centers: Any, scale: float = 1.0, counts: TilingCounts | None = None) -> list[Any]:
    """Views by a tiler, wherever it leaves them."""
    out = tiler.buffers(len(centers))
    scales = np.full(len(centers), scale, np.float32)
    statuses = tiler.cut_views(slide, centers, scales, out, slice(None), counts or TilingCounts())
    if statuses.any():
        raise RuntimeError(f"{slide}: {np.count_nonzero(statuses)} spots have no views")
    return out
