"""One slide in, one expression map out."""

from __future__ import annotations

import asyncio
import json
import platform
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_preprocess.contract import EngineInfo
from m2ost_preprocess.decoder import Decoder, SlideInfo
from m2ost_preprocess.spots import Spots, read_spots

from . import maps
from .errors import OutputError, RequestRejected
from .results import SlideResult, check_writable, write_h5ad, write_json
from .stream import SpotBatch, SpotStream, StreamOptions

DEFAULT_PITCH_UM = 100.0
_PACKAGES = ("m2ost-triton", "numpy", "anndata", "tritonclient", "pillow")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What to predict and where to put it.

    Parameters
    ----------
    slide : str
        The slide's name on the server (``root/relative/path``), or with ``send_pixels`` a path on this host.
    out : Path
        Folder for the results.
    spots_file : Path, optional
        Spots to score; else a grid over the tissue.
    pitch_um : float
        Pitch of that grid in µm.
    mpp : float, optional
        µm/px of the slide, in place of what the file says.
    view_mpp : float or "model", optional
        Cut the views at this µm/px, or at the one the network was trained at; by default at the slide's own pixels.
    genes : tuple of str
        Genes to draw maps of.
    send_pixels : bool
        Read the slide here and send its views: for a server that does not see the slide.
    stream : StreamOptions
    """

    slide: str
    out: Path
    spots_file: Path | None = None
    pitch_um: float = DEFAULT_PITCH_UM
    mpp: float | None = None
    view_mpp: float | str | None = None
    genes: tuple[str, ...] = ()
    send_pixels: bool = False
    stream: StreamOptions = field(default_factory=StreamOptions)


@dataclass(frozen=True)
class PredictReport:
    """What a run made.

    Parameters
    ----------
    result : SlideResult
    metadata : dict
        The content of ``<name>.json``.
    files : tuple of Path
        Every file written.
    """

    result: SlideResult
    metadata: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        """Whether every spot has a value."""
        return bool((self.result.status == 0).all())


async def predict_slide(
    address: str, options: PredictOptions, *, on_progress: Callable[[int, int], None] | None = None
) -> PredictReport:
    """Score one slide and write its results.

    Parameters
    ----------
    address : str
        ``host:port`` of a server's gRPC service.
    options : PredictOptions
    on_progress : callable, optional
        Called with (spots done, spots in all), also once before the first.

    Returns
    -------
    PredictReport
        ``<name>.h5ad``, ``<name>.json``, ``<name>.pca.png`` and a map for every gene asked for.

    Raises
    ------
    OutputError
        If a result cannot be written. Checked before work begins; nothing half-written is left.
    SpotError, SlideError, RequestRejected, ServerUnavailable, ReleaseChanged
        As their modules say.
    """
    check_writable(options.out)
    clock = _Stages()
    spots = read_spots(options.spots_file) if options.spots_file else None
    async with SpotStream(address, options.stream) as stream:
        _check_genes(options.genes, stream.info)
        local = Decoder(stream.info.views) if options.send_pixels else None
        try:
            pitch_um = options.pitch_um if spots is None else None
            with clock.stage("describe_s"):
                if local:
                    slide = await asyncio.to_thread(
                        local.describe, Path(options.slide), pitch_um=pitch_um, mpp=options.mpp
                    )
                else:
                    slide = await stream.slide_info(options.slide, pitch_um=pitch_um, mpp=options.mpp)
            _check_same_slide(options, slide)
            if spots is None:
                source = f"grid, pitch {options.pitch_um:g} µm"
                spots = Spots(slide.centers, slide.names, slide.pitch_px, source)
            scale = view_scale(options.view_mpp, slide, stream.info)
            with clock.stage("score_s"):
                batches = (
                    stream.predict_local(Path(options.slide), spots.centers, local, scale=scale)
                    if local
                    else stream.predict(options.slide, spots.centers, scale=scale)
                )
                expression, status = await _collect(batches, len(spots), len(stream.info.genes), on_progress)
        finally:
            if local:
                local.close()
        result = SlideResult(result_name(options.slide), slide, stream.info, spots, expression, status)
        metadata = _metadata(options, result, scale, address, stream.retries, clock)
    with clock.stage("write_s"):
        files = await asyncio.to_thread(_write, options, result, metadata)
    metadata["timings"] = clock.seconds
    write_json(metadata, options.out / f"{result.name}.json")
    return PredictReport(result, metadata, (*files, options.out / f"{result.name}.json"))


def result_name(slide: str) -> str:
    """Stem of a slide's result files."""
    return Path(slide).stem


def view_scale(view_mpp: float | str | None, slide: SlideInfo, engine: EngineInfo) -> float:
    """Level-0 pixels per view pixel.

    Parameters
    ----------
    view_mpp : float, "model" or None
        As in :class:`PredictOptions`.

    Raises
    ------
    RequestRejected
        If a physical unit is asked for and µm/px of the slide, or of the training, is unknown.
    """
    if view_mpp is None:
        return 1.0
    if slide.mpp is None:
        raise RequestRejected(
            "views at a given µm/px need the slide's own and it has none; give --mpp", "INVALID_ARGUMENT"
        )
    if view_mpp == "model":
        if engine.mpp is None:
            raise RequestRejected(
                "the checkpoint does not record its µm/px; give --view-mpp a number", "INVALID_ARGUMENT"
            )
        view_mpp = engine.mpp
    return float(view_mpp) / slide.mpp


async def _collect(
    batches: AsyncGenerator[SpotBatch, None],
    n_spots: int,
    n_genes: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[Any, Any]:
    expression = np.full((n_spots, n_genes), np.nan, np.float32)
    status = np.zeros(n_spots, np.int32)
    done = 0
    if on_progress:
        on_progress(done, n_spots)
    async with aclosing(batches):
        async for batch in batches:
            expression[batch.rows], status[batch.rows] = batch.expression, batch.status
            done += len(batch.rows)
            if on_progress:
                on_progress(done, n_spots)
    if done != n_spots:
        raise OutputError(f"{done} of {n_spots} spots came back; nothing was written")
    return expression, status


def _check_genes(genes: tuple[str, ...], engine: EngineInfo) -> None:
    for gene in genes:
        if gene not in engine.genes:
            raise RequestRejected(
                f"gene {gene!r} is not in the panel of {len(engine.genes)} genes ({', '.join(engine.genes[:5])} …)",
                "NOT_FOUND",
            )


def _check_same_slide(options: PredictOptions, slide: SlideInfo) -> None:
    """Refuse to replace the result of another slide that has the same name."""
    path = options.out / f"{result_name(options.slide)}.json"
    try:
        before = json.loads(path.read_text())["slide_facts"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if before != slide.fingerprint:
        raise OutputError(f"{path} is the result of another slide of that name; choose another --out or remove it")


def _write(options: PredictOptions, result: SlideResult, metadata: dict[str, Any]) -> tuple[Path, ...]:
    h5ad = options.out / f"{result.name}.h5ad"
    write_h5ad(result, metadata, h5ad)
    files = [h5ad]
    if len(result.spots):
        pca = options.out / f"{result.name}.pca.png"
        maps.draw_pca(result, pca)
        files.append(pca)
    for gene in options.genes if len(result.spots) else ():
        path = options.out / f"{result.name}.{gene}.png"
        maps.draw_gene(result, gene, path)
        files.append(path)
    return tuple(files)


def _metadata(
    options: PredictOptions, result: SlideResult, scale: float, address: str, retries: int, clock: _Stages
) -> dict[str, Any]:
    n_spots, slide, engine = len(result.spots), result.slide, result.engine
    score_s = clock.seconds["score_s"]
    return {
        "slide": options.slide,
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
        "spots_per_s": n_spots / score_s if n_spots else None,
        "retries": retries,
        "server": address,
        "pixels_sent_by_client": options.send_pixels,
        "batch_rows": options.stream.batch_rows,
        "window": options.stream.window,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "timings": dict(clock.seconds),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


class _Stages:
    """Wall-clock seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def stage(self, name: str) -> _Stage:
        return _Stage(self.seconds, name)


@dataclass
class _Stage:
    seconds: dict[str, float]
    name: str
    started: float = 0.0

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.seconds[self.name] = round(time.perf_counter() - self.started, 4)
