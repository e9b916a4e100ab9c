"""What to predict of one slide, and what of it a slide and a release allow."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from m2ost_contract import SCALE_MAX, SCALE_MIN, EngineInfo
from m2ost_preprocess.decoder import SlideInfo
from m2ost_preprocess.slides.rectangle import Rectangle

from .errors import InputError
from .exports import Exports
from .stream import StreamOptions

DEFAULT_PITCH_UM = 100.0


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What to predict and where to put it.

    Parameters
    ----------
    slide : str
        The slide's name on the server (``root/relative/path``), or with ``send_pixels`` a path on this host.
    out : Path
        Folder for the results.
    source : str, optional
        The slide as the caller knows it, which is recorded and names the results; by default ``slide``.
    spots_file : Path, optional
        Spots to score; else a grid over the tissue.
    mask : Path, optional
        Image over the whole slide; the grid covers what is not black, in place of what is taken for tissue.
    pitch_um : float
        Pitch of that grid in µm.
    region : Rectangle, optional
        Score only spots whose centres lie in it.
    mpp : float, optional
        µm/px of the slide, in place of what the file says.
    view_mpp : float or "model", optional
        Cut the views at this µm/px, or at the one the network was trained at; by default at the slide's own pixels.
    genes : tuple of str
        Genes to draw maps of; those of a GeoJSON and that a report opens with, too.
    exports : Exports
        Further files to write.
    send_pixels : bool
        Read the slide here and send its views: for a server that does not see the slide.
    pyramid : bool
        Let coarse views be cut from the slide's own lower levels: less to decode, other values than the definition's.
    stream : StreamOptions
    """

    slide: str
    out: Path
    source: str | None = None
    spots_file: Path | None = None
    mask: Path | None = None
    pitch_um: float = DEFAULT_PITCH_UM
    region: Rectangle | None = None
    mpp: float | None = None
    view_mpp: float | str | None = None
    genes: tuple[str, ...] = ()
    exports: Exports = field(default_factory=Exports)
    send_pixels: bool = False
    pyramid: bool = False
    stream: StreamOptions = field(default_factory=StreamOptions)


def view_scale(view_mpp: float | str | None, slide: SlideInfo, engine: EngineInfo) -> float:
    """Level-0 pixels per view pixel.

    Parameters
    ----------
    view_mpp : float, "model" or None
        As in :class:`PredictOptions`.

    Raises
    ------
    InputError
        If a physical unit is asked for and µm/px of the slide, or of the training, is unknown; or if the views would
        be cut at a scale that the contract does not allow.
    """
    if view_mpp is None:
        return 1.0
    if slide.mpp is None:
        raise InputError("views at a given µm/px need the slide's own and it has none; give --mpp")
    if view_mpp == "model":
        if engine.mpp is None:
            raise InputError("the checkpoint does not record its µm/px; give --view-mpp a number")
        view_mpp = engine.mpp
    scale = float(view_mpp) / slide.mpp
    if not SCALE_MIN <= scale <= SCALE_MAX:  # true for NaN too
        low, high = SCALE_MIN * slide.mpp, SCALE_MAX * slide.mpp
        raise InputError(
            f"views at {float(view_mpp):g} µm/px cannot be cut from a slide of {slide.mpp:g} µm/px; "
            f"--view-mpp must lie in {low:g} to {high:g}"
        )
    return scale


ALIKE = 0.05
"""Views whose µm/px differ from those of the training by no more than this share are like them."""


def unlike_training(slide: SlideInfo, engine: EngineInfo, scale: float) -> str:
    """Words where views have other µm/px than those that the network was trained on; empty where not, or unknown.

    Parameters
    ----------
    slide : SlideInfo
    engine : EngineInfo
    scale : float
        Level-0 pixels per view pixel.
    """
    if slide.mpp is None or engine.mpp is None or abs(slide.mpp * scale / engine.mpp - 1) <= ALIKE:
        return ""
    here, there = f"{slide.mpp * scale:.4g}", f"{engine.mpp:.4g}"
    return (
        f"its views have {here} µm/px, and the network was trained on {there}, so that values may be wrong; "
        "--view-mpp model cuts them as in the training"
    )


def check_sending(send_pixels: bool, engine: EngineInfo) -> None:
    """Refuse to send pixels to a network that predicts a slide as a whole.

    Raises
    ------
    InputError
        Says what to do in its place.
    """
    if send_pixels and engine.slide_level is not None:
        raise InputError(
            "this release predicts a slide as a whole, where its server reads the slide; leave --send-pixels out, and "
            "put the slide under a root of the server's"
        )


def check_genes(genes: tuple[str, ...], engine: EngineInfo) -> None:
    """Refuse genes that are not in the panel.

    Raises
    ------
    InputError
        Names the first.
    """
    for gene in genes:
        if gene not in engine.genes:
            raise InputError(
                f"gene {gene!r} is not in the panel of {len(engine.genes)} genes ({', '.join(engine.genes[:5])} …)"
            )
