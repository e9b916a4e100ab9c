"""What is recorded beside a result: where it came from, how it was made, and how long that took."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .results import SlideResult

if TYPE_CHECKING:
    from .predict import PredictOptions

_PACKAGES = ("m2ost-triton", "numpy", "anndata", "tritonclient", "pillow")


@contextmanager
def stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the wall-clock seconds of a block under ``name``."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = round(time.perf_counter() - started, 4)


def run_metadata(
    options: PredictOptions, result: SlideResult, *, scale: float, server: str, retries: int, seconds: dict[str, float]
) -> dict[str, Any]:
    """The content of ``<name>.json``, for JSON.

    Parameters
    ----------
    options : PredictOptions
    result : SlideResult
    scale : float
        Level-0 pixels per view pixel.
    server : str
        Address of the server.
    retries : int
        Requests that were sent again.
    seconds : dict of str to float
        Wall-clock seconds by stage.
    """
    n_spots, slide, engine = len(result.spots), result.slide, result.engine
    return {
        "slide": options.source or options.slide,
        "served_as": None if options.send_pixels else options.slide,
        "trained": engine.trained,
        "checkpoint_sha256": engine.checkpoint_sha256,
        "release_sha256": engine.release_sha256,
        "precision": engine.precision,
        "target": engine.target,
        "slide_facts": {**slide.facts(), "size": list(slide.size)},
        "views": {
            **engine.views.to_dict(),
            "level0_px_per_view_px": scale,
            "native_pixels": scale == 1.0,
            "mpp": None if slide.mpp is None else slide.mpp * scale,
            "trained_at_mpp": engine.mpp,
        },
        "spots": {"count": n_spots, "source": result.spots.source, "by_status": result.counts_by_status()},
        "spots_per_s": n_spots / seconds["score_s"] if n_spots else None,
        "retries": retries,
        "server": server,
        "pixels_sent_by_client": options.send_pixels,
        "batch_rows": options.stream.batch_rows,
        "window": options.stream.window,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "timings": dict(seconds),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
