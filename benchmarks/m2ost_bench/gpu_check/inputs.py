"""What the check runs on: a slide that can be read here, spots on it, a network."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_preprocess.decoder import DecodedSlide, Decoder
from m2ost_preprocess.errors import SlideError
from m2ost_preprocess.tiling.views import spatial_order

from .parts import Outcome, Skip, need

PITCHES_PX = {"apart": 224, "dense": 16}
"""Level-0 pixels between the spots of a run."""


def choose_slide(outcome: Outcome, slides: Sequence[Path], decoder: Decoder) -> DecodedSlide:
    """The first slide that a reader opens here; why not the ones before it goes into the outcome."""
    reasons = []
    for path in slides:
        try:
            slide = DecodedSlide(decoder, path.resolve())
        except SlideError as error:
            reasons.append(str(error))
            continue
        outcome.figures.update(slide=path.name, size_px=list(slide.size), reader=slide.reader, passed_over=reasons)
        return slide
    raise Skip("no slide can be read here: " + "; ".join(reasons or ["give one with --slide"]))


def spots_on(size: tuple[int, int], count: int, seed: int = 0) -> Any:
    """Centres that neighbour each other as on a dense grid, and the slide's four corners; int32, shape (count, 2)."""
    width, height = size
    corners = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)]
    side = int(np.ceil(np.sqrt(count)))
    x, y = (np.linspace(0.1 * n, 0.9 * n, side, dtype=np.int32) for n in (width, height))
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    grid += np.random.default_rng(seed).integers(0, 8, grid.shape, np.int32)  # all residues
    centers = np.array([*corners, *grid], np.int32)[:count]
    ordered: Any = centers[spatial_order(centers)]
    return ordered


def grids_on(size: tuple[int, int], most: int) -> dict[str, Any]:
    """Spots of whole runs, in the order that a client sends them in; int32, shape (n, 2), at most ``most`` each.

    ``apart`` are as far from each other as the finest view is wide, so that nearly all that is read is read for one
    spot; of ``dense``, as of a map, hundreds share their pixels.
    """
    width, height = size
    grids = {}
    for name, pitch in PITCHES_PX.items():
        side = math.isqrt(most)
        columns = max(1, min(width // pitch, side))
        x, y = np.arange(columns), np.arange(max(1, min(height // pitch, most // columns)))
        centers = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2) * pitch + pitch // 2
        grids[name] = centers.astype(np.int32)[spatial_order(centers)]
    return grids


class FreshSlide:
    """A copy of a slide under a new name whenever it is asked for: no tile that was decoded before serves again.

    Parameters
    ----------
    slide : Path
        The slide, a file or a folder.
    folder : Path
        Is made, and holds nothing but the copy.
    """

    def __init__(self, slide: Path, folder: Path) -> None:
        folder.mkdir()
        self.folder, self._path, self._suffix, self._times = folder, folder / slide.name, slide.suffix, 0
        (shutil.copytree if slide.is_dir() else shutil.copyfile)(slide, self._path)

    def path(self) -> Path:
        """The copy, under its new name."""
        self._times += 1
        self._path = self._path.rename(self._path.with_name(f"{self._times}{self._suffix}"))
        return self._path


def load_network(outcome: Outcome, checkpoint: Path) -> Any:
    """The checkpoint's network; where safetensors is missing, one of its architecture that says that it is untrained.

    Raises
    ------
    Skip
        If PyTorch is missing.
    """
    torch = need("torch", install="pip install torch")
    from m2ost.systems.registry import build, from_dict

    try:
        from m2ost.checkpoint import load
    except ImportError as error:
        outcome.figures["weights"] = f"untrained: {checkpoint.name} needs safetensors ({error}); see `make gpu-carry`"
        card = json.loads((checkpoint / "model.json").read_text(encoding="utf-8"))
        torch.manual_seed(0)
        return build(from_dict(card["architecture"])).eval()
    model, card = load(checkpoint)
    outcome.figures["weights"] = f"{checkpoint.name}, sha256 {card.sha256[:12]}"
    return model
