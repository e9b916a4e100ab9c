"""What one slide is to be scored as: its facts, its spots, and the key of everything that its values depend on."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import ONNXRUNTIME_CPU, EngineInfo, as_centers
from m2ost_preprocess.decoder import SlideInfo
from m2ost_preprocess.slides.rectangle import Rectangle
from m2ost_preprocess.slides.spot_array import Places
from m2ost_preprocess.slides.spot_places import check_places
from m2ost_preprocess.slides.spots import Spots, read_spots
from m2ost_preprocess.tiling.views import Centers, spatial_order

from ..errors import InputError
from ..options import DEFAULT_PITCH_UM, view_scale
from ..spot_choice import grid_on_mask, spots_within
from .score import SpotRange
from .slide_list import SlideRow

Describe = Callable[[float | None, float | None], Awaitable[SlideInfo]]
"""Describes the slide: (pitch in µm or None, µm/px or None)."""


ENGINE_OF_BEFORE = ONNXRUNTIME_CPU
"""What an archive was scored on whose state says nothing of it: that of an earlier version, which had this default."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all results of an archive have in common.

    Parameters
    ----------
    pitch_um : float
        Pitch of grids in µm, where a slide has none of its own.
    view_mpp : float or "model", optional
        As in :class:`~m2ost_client.predict.PredictOptions`.
    pyramid : bool
        As in :class:`~m2ost_client.predict.PredictOptions`.
    """

    pitch_um: float = DEFAULT_PITCH_UM
    view_mpp: float | str | None = None
    pyramid: bool = False

    def to_dict(self, engine: EngineInfo) -> dict[str, Any]:
        """With release and engine, as the state keeps them."""
        return {**asdict(self), "release_sha256": engine.release_sha256, "engine": engine.runs_on}


@dataclass(frozen=True)
class SlidePlan:
    """A slide that is ready to be scored.

    Parameters
    ----------
    row : SlideRow
    slide : SlideInfo
    spots : Spots
    order : ndarray of intp, shape (n,)
        The order in which spots are scored: of place ``i`` in it is spot ``order[i]``.
    scale : float
        Level-0 pixels per view pixel.
    key : str
        sha256 over what the values depend on: content, release, engine, µm/px, and where the spots come from.
    places : ndarray of int32, shape (n, 2), or None
        x, y of the spots on the array, in their own order, where the slide is predicted as a whole.
    pyramid : bool
        Whether coarse views may be cut from the slide's lower levels.
    """

    row: SlideRow
    slide: SlideInfo
    spots: Spots
    order: np.ndarray[Any, np.dtype[np.intp]]
    scale: float
    key: str
    places: Places | None = None
    pyramid: bool = False

    @property
    def centers(self) -> Centers:
        """Where to score, in the order of scoring."""
        centers: Centers = as_centers(self.spots.centers)[self.order]
        return centers

    def parts_key(self, batch_rows: int) -> str:
        """Identity of a part of the result: parts of one slide fit together only if these are the same."""
        digest = hashlib.sha256(f"{self.key} {batch_rows} {self.scale!r}".encode())
        digest.update(np.ascontiguousarray(self.centers).tobytes())
        if self.places is not None:
            digest.update(np.ascontiguousarray(self.places).tobytes())
        return digest.hexdigest()

    def unit(self, name: str, first: int, end: int) -> SpotRange:
        """A range of the spots, for a scheduler to hand out."""
        places = None if self.places is None else self.places[self.order][first:end]
        return SpotRange(name, first, self.centers[first:end], self.scale, places, self.pyramid)


def result_key(row: SlideRow, fingerprint: str, settings: Settings, engine: EngineInfo) -> str:
    """sha256 over what a slide's values depend on. Reads the slide's spot file and mask, if it has them.

    Raises
    ------
    InputError
        If one of these cannot be read.
    """
    facts = {
        "fingerprint": fingerprint,
        "release_sha256": engine.release_sha256,
        "mpp": row.mpp,
        "view_mpp": settings.view_mpp,
        "pitch_um": None if row.spots else row.pitch_um or settings.pitch_um,
        "spots": _sha256(row.spots),
        "mask": _sha256(row.mask),
        **({} if engine.runs_on == ENGINE_OF_BEFORE else {"engine": engine.runs_on}),
        **({} if row.region is None else {"region": str(Rectangle.parse(row.region))}),
        **({"pyramid": True} if settings.pyramid else {}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


async def plan_slide(row: SlideRow, describe: Describe, settings: Settings, engine: EngineInfo) -> SlidePlan:
    """Look at a slide and lay out its spots.

    Parameters
    ----------
    row : SlideRow
    describe : callable
        Asks whoever reads the slide.
    settings : Settings
    engine : EngineInfo
        What is served.

    Raises
    ------
    RequestRejected, SlideError, SpotError, PositionsError, InputError
        If it cannot be scored as asked.
    """
    pitch_um = row.pitch_um or settings.pitch_um
    own_grid = row.spots is None and row.mask is None
    slide = await describe(pitch_um if own_grid else None, row.mpp)
    scale = view_scale(settings.view_mpp, slide, engine)
    if row.spots is not None:
        spots = await asyncio.to_thread(_spots_of_file, Path(row.spots), slide)
    elif row.mask is not None:
        spots = await asyncio.to_thread(grid_on_mask, Path(row.mask), slide, pitch_um)
    else:
        spots = Spots(slide.centers, slide.names, slide.pitch_px, f"grid, pitch {pitch_um:g} µm")
    if row.region is not None:
        spots = spots_within(spots, Rectangle.parse(row.region), slide.size)
    centers = as_centers(spots.centers)
    key = await asyncio.to_thread(result_key, row, slide.fingerprint, settings, engine)
    widest_px = engine.views.window_px(engine.views.n_views - 1, scale)
    places = None
    if engine.slide_level is not None:
        places = spots.places()
        if len(spots):
            engine.slide_level.check(places, len(spots), whose=row.path)
    return SlidePlan(
        row, slide, spots, spatial_order(centers, window_px=widest_px), scale, key, places, settings.pyramid
    )


def _spots_of_file(path: Path, slide: SlideInfo) -> Spots:
    spots = read_spots(path)
    check_places(spots.centers, slide.size, lambda: slide.thumbnail, source=str(path), columns=spots.columns)
    return spots


def _sha256(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
