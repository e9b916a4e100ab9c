"""What is recorded beside a result: where it came from, how it was made, and how long that took."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from m2ost_contract import EngineInfo
from m2ost_preprocess.decoder import SlideInfo
from m2ost_preprocess.slides.spots import Spots

from .options import PredictOptions, unlike_training

_PACKAGES = ("m2ost-triton", "numpy", "anndata", "tritonclient", "pillow", "zarr")


@dataclass(frozen=True)
class SpotsScored:
    """The spots of a run.

    Parameters
    ----------
    count : int
    source : str
        Where they come from, in words.
    by_status : dict of str to int
        How many have each status, by its name.
    """

    count: int
    source: str
    by_status: dict[str, int]


def run_metadata(
    options: PredictOptions,
    slide: SlideInfo,
    engine: EngineInfo,
    *,
    spots: SpotsScored,
    scale: float,
    server: str,
    retries: int,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The content of ``<name>.json``, for JSON.

    Parameters
    ----------
    options : PredictOptions
    slide : SlideInfo
    engine : EngineInfo
    spots : SpotsScored
    scale : float
        Level-0 pixels per view pixel.
    server : str
        Address of the server.
    retries : int
        Requests that were sent again.
    seconds : dict of str to float
        Wall-clock seconds by stage.
    """
    return {
        **result_metadata(
            slide,
            engine,
            spots=spots,
            name=options.source or options.slide,
            served_as=None if options.send_pixels else options.slide,
            scale=scale,
            pixels_sent_by_client=options.send_pixels,
        ),
        "region": str(options.region) if options.region else None,
        "lower_levels": options.pyramid,
        "spots_per_s": spots.count / seconds["score_s"] if spots.count else None,
        "retries": retries,
        "server": server,
        "batch_rows": options.stream.batch_rows,
        "window": options.stream.window,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "timings": dict(seconds),
    }


def result_metadata(
    slide: SlideInfo,
    engine: EngineInfo,
    *,
    spots: SpotsScored,
    name: str,
    served_as: str | None,
    scale: float,
    pixels_sent_by_client: bool,
) -> dict[str, Any]:
    """What is true of a result whenever and wherever it was made, for JSON.

    Parameters
    ----------
    slide : SlideInfo
    engine : EngineInfo
    spots : SpotsScored
    name : str
        The slide as the caller knows it.
    served_as : str or None
        Its name on the server.
    scale : float
        Level-0 pixels per view pixel.
    pixels_sent_by_client : bool
        Whether the views were cut by the client.
    """
    return {
        "slide": name,
        "served_as": served_as,
        "trained": engine.trained,
        "checkpoint_sha256": engine.checkpoint_sha256,
        "release_sha256": engine.release_sha256,
        "precision": engine.precision,
        "engine": engine.runs_on,
        "target": engine.target,
        "slide_facts": {**slide.facts(), "size": list(slide.size)},
        "views": {
            **engine.views.to_dict(),
            "level0_px_per_view_px": scale,
            "native_pixels": scale == 1.0,
            "mpp": None if slide.mpp is None else slide.mpp * scale,
            "trained_at_mpp": engine.mpp,
            "warning": unlike_training(slide, engine, scale),
        },
        "spots": asdict(spots),
        "pixels_sent_by_client": pixels_sent_by_client,
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
    }


def level_metadata(engine: EngineInfo, spots: Spots) -> dict[str, str]:
    """What is true beside it of a result of a network that predicts a slide as a whole; nothing of another."""
    if engine.slide_level is None:
        return {}
    of_file = "places on the array of the file of spots"
    of_grid = "columns and rows of the grid, counted from the first that have a spot"
    return {"level": engine.level, "positions": of_grid if spots.array is None else of_file}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
