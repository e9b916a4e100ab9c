"""Spots a second of every system, served from slide names by one Triton, in turn.

Weights are random: a speed does not depend on them. Every run moves the spots by a pixel, so that no system is given
views that were cut for another. A step of its own: it may run days after the trainings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from m2ost.checkpoint import initialise, load, save
from m2ost.systems.bleep import BleepConfig
from m2ost.training.config import TrainConfig
from m2ost_client.server.command import ServerOptions
from m2ost_client.server.supervisor import TritonServer
from m2ost_client.stream import SpotStream, StreamOptions
from m2ost_export.release import build_release
from m2ost_loadtests.errors import TargetError
from m2ost_loadtests.machine import versions
from m2ost_loadtests.rounds import interleave, seconds_of
from m2ost_loadtests.runners import grid_of_spots
from m2ost_preprocess.slides import SlideRoots
from m2ost_preprocess.slides.spots import Spots

RELEASES = "releases"
BANK_ROWS = 549
"""Spots of three sections."""

RUNTIMES = ("onnxruntime", "numpy")
ROOT = "bench"


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """What is timed.

    Parameters
    ----------
    slide : Path
        Carries µm/px.
    pitch_um : float
        Pitch of the grid of spots, in µm.
    rounds : int
        In each, every system scores all spots once.
    """

    slide: Path
    pitch_um: float = 100.0
    rounds: int = 3


def measure_speed(
    settings: Mapping[str, TrainConfig],
    panel: Sequence[str],
    folder: Path,
    options: SpeedOptions,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Export each system where ``folder`` lacks its release, serve all together, and time them.

    Parameters
    ----------
    settings : mapping
        Of a training, by system; its sizes and its µm a view pixel are taken.
    panel : sequence of str
        Genes.
    folder : Path
        Keeps the releases.
    options : SpeedOptions
    say : callable

    Returns
    -------
    dict
        For JSON: facts of the rounds, and ``spots_per_s`` by system.

    Raises
    ------
    TargetError
        If the slide carries no µm/px or has no spots, or a spot has no value.
    """
    releases = {name: _release(name, config, panel, folder / RELEASES, say) for name, config in settings.items()}
    slide = options.slide.resolve()
    spots, mpp = grid_of_spots(slide, options.pitch_um)
    scales = {name: (config.data.view_mpp or mpp) / mpp for name, config in settings.items()}
    first, *others = releases.values()
    roots = SlideRoots({ROOT: slide.parent})
    say(f"serving {', '.join(releases)}")
    with TritonServer(ServerOptions(release=first, others=tuple(others), roots=roots)) as server:
        told = time_in_turn(server.address, scales, f"{ROOT}/{slide.name}", spots, options.rounds, say)
    return {"slide": slide.name, "pitch_um": options.pitch_um, "versions": versions(RUNTIMES), **told}


def time_in_turn(
    address: str,
    scales: Mapping[str, float],
    slide: str,
    spots: Spots,
    rounds: int,
    say: Callable[[str], None] = lambda words: None,
) -> dict[str, Any]:
    """Time systems of one server in turn, after one untimed run of each.

    Parameters
    ----------
    address : str
    scales : mapping of str to float
        Level-0 pixels a view pixel, by the name that the server knows a system by.
    slide : str
        Its name on the server.
    spots : Spots
    rounds : int
    say : callable

    Returns
    -------
    dict
        ``machine``, ``rounds``, ``order``, ``spots`` and, by system, ``spots_per_s``.
    """
    moved = count(1)

    def score(name: str) -> None:
        asyncio.run(_score(address, name, slide, spots, scales[name], next(moved)))

    def rate(name: str) -> float:
        found = len(spots) / seconds_of(partial(score, name)).clock
        say(f"{name}: {found:.2f} spots/s")
        return found

    for name in scales:
        score(name)
    timed = interleave({name: partial(rate, name) for name in scales}, rounds)
    return {**timed.facts(), "spots": len(spots), "spots_per_s": timed.spreads()}


async def _score(address: str, name: str, slide: str, spots: Spots, scale: float, by_px: int) -> None:
    """Score all spots, moved to the right."""
    centers = spots.centers + np.array([by_px, 0])
    async with SpotStream(address, StreamOptions(model=name)) as client:
        if client.info.slide_level is None:
            batches = client.predict(slide, centers, scale=scale)
        else:
            batches = client.predict_whole(slide, centers, spots.places(), scale=scale)
        async for batch in batches:
            if batch.status.any():
                raise TargetError(f"{slide}: spots without a value from {name}; a speed is of spots that have one")


def _release(name: str, config: TrainConfig, panel: Sequence[str], folder: Path, say: Callable[[str], None]) -> Path:
    """The release of a freshly initialised network of these sizes, exported where it is not there."""
    sizes = config.model.resized(n_genes=len(panel))
    if isinstance(sizes, BleepConfig):
        sizes = replace(sizes, bank_rows=BANK_ROWS)
    release = folder / name / "release"
    if not release.exists():
        say(f"exporting {name}")
        checkpoint = folder / name / "checkpoint"
        if not checkpoint.exists():
            network, card = initialise(sizes, tuple(panel))
            save(checkpoint, network, replace(card, mpp=config.data.view_mpp))
        build_release(*load(checkpoint), release, name=name)
    return release
