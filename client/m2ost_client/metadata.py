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
    n_spots = len(result.spots)
    return {
        **result_metadata(
            result,
            slide=options.source or options.slide,
            served_as=None if options.send_pixels else options.slide,
            scale=scale,
            pixels_sent_by_client=options.send_pixels,
        ),
        "spots_per_s": n_spots / seconds["score_s"] if n_spots else None,
        "retries": retries,
        "server": server,
        "batch_rows": options.stream.batch_rows,
        "window": options.stream.window,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "timings": dict(seconds),
    }


def result_metadata(
    result: SlideResult, *, slide: str, served_as: str | None, scale: float, pixels_sent_by_client: bool
) -> dict[str, Any]:
    """What is true of a result whenever and wherever it was made, for JSON.

    Parameters
    ----------
    result : SlideResult
    slide : str
        The slide as the caller knows it.
    served_as : str or None
        Its name on the server.
    scale : float
        Level-0 pixels per view pixel.
    pixels_sent_by_client : bool
        Whether the views were cut by the client.
    """
    facts, engine = result.slide, result.engine
    return {
        "slide": slide,
        "served_as": served_as,
        "trained": engine.trained,
        "checkpoint_sha256": engine.checkpoint_sha256,
        "release_sha256": engine.release_sha256,
        "precision": engine.precision,
        "target": engine.target,
        "slide_facts": {**facts.facts(), "size": list(facts.size)},
        "views": {
            **engine.views.to_dict(),
            "level0_px_per_view_px": scale,
            "native_pixels": scale == 1.0,
            "mpp": None if facts.mpp is None else facts.mpp * scale,
            "trained_at_mpp": engine.mpp,
        },
        "spots": {"count": len(result.spots), "source": result.spots.source, "by_status": result.counts_by_status()},
        "pixels_sent_by_client": pixels_sent_by_client,
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
