"""Real releases, and what their networks compute."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from m2ost.architecture import Architecture
from m2ost.checkpoint import initialise, load, save
from m2ost.config import M2OSTConfig
from m2ost.symmetries import with_test_time
from m2ost.systems.hist2st import Hist2StConfig
from m2ost.systems.histogene import HisToGeneConfig
from m2ost.systems.stnet import StNetConfig
from m2ost_contract import Manifest, as_centers, sha256_file
from m2ost_export.release import build_release
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.tiling.views import cut_views

NARROW = M2OSTConfig(n_genes=6, depth=1, dim=12, heads=1, head_dim=12, ffn_dim=8, channel_dim=8)
"""A depth-1, narrow network: the whole serving path at a fraction of the arithmetic."""

STNET = StNetConfig(n_genes=6, layers=(2, 2), growth=8, stem=8)
_SLIDE_LEVEL = {"n_genes": 6, "image_px": 56, "heads": 2, "depth": 1, "most_spots": 300}
HIST2ST = Hist2StConfig(**_SLIDE_LEVEL, channels=4, mixers=1, graph_layers=2)
HISTOGENE = HisToGeneConfig(**_SLIDE_LEVEL, dim=32, hidden=16)


def make_release(folder: Path, config: Architecture, seed: int = 0, test_time: str = "none", **options) -> Path:
    """Checkpoint and release of a freshly initialised network below ``folder``; returns the release."""
    model, card = initialise(config, tuple(f"untrained_{i:03d}" for i in range(config.n_genes)), seed=seed)
    card = replace(card, test_time=test_time)
    build_release(model, save(folder / "checkpoint", model, card), folder / "release", **options)
    return folder / "release"


def reseal(release: Path) -> Path:
    """Let the manifest of a release that a test has changed describe it as it is now."""
    manifest = Manifest.read(release)
    manifest.files.update({name: sha256_file(release / name) for name in manifest.files})
    manifest.write(release)
    return release


def another(release: Path, folder: Path) -> Path:
    """A copy of a release that says of itself that it is another."""
    shutil.copytree(release, folder)
    own = Manifest.read(release).engine.release_sha256
    for path in folder.rglob("*"):
        if path.is_file() and own.encode() in (text := path.read_bytes()):
            path.write_bytes(text.replace(own.encode(), b"0" * 64))
    return reseal(folder)


def network_of(release: Path):
    """The PyTorch network that a release was made from, with what its card averages at inference."""
    model, card = load(release.parent / "checkpoint")
    return with_test_time(model, card.test_time)


def by_pytorch(release: Path, slide: Path, centers, scale: float = 1.0) -> np.ndarray:
    """What PyTorch computes on the same views, cut in this process."""
    model = network_of(release)
    geometry, centers = model.config.views, as_centers(centers)
    views = [np.empty((len(centers), *geometry.shape), np.uint8) for _ in geometry.names]
    statuses = cut_views(open_slide(slide), centers, np.full(len(centers), scale, np.float32), geometry, views)
    assert not statuses.any()
    parts = []
    with torch.inference_mode():
        for first in range(0, len(centers), 16):
            parts.append(model(*(torch.from_numpy(v[first : first + 16]) for v in views)).numpy())
    return np.concatenate(parts)
