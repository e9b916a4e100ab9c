"""Small networks and their fp16 graphs, and one release of the shipped checkpoint with a real engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from m2ost.checkpoint import load, save
from m2ost.shipped import shipped_checkpoint
from m2ost_contract import Manifest
from m2ost_export.engines import EngineOptions
from m2ost_export.fused import FusedM2OST
from m2ost_export.onnx_files import load_checked
from m2ost_export.probes import slide_views
from m2ost_export.release import build_release

from tests.support.once import made_once

from .networks import SMALL, Exported, small_network


@pytest.fixture(scope="session")
def small_release(heavy, tmp_path_factory) -> Path:
    """An fp16 release without engines."""

    def make(folder: Path) -> None:
        model, card = small_network()
        build_release(model, save(folder / "checkpoint", model, card), folder / "release", precision="fp16")

    return made_once(tmp_path_factory, "small", make) / "release"


@pytest.fixture(scope="session")
def split_release(heavy, tmp_path_factory) -> Path:
    """A float32 release, with body and tail, beside its checkpoint."""

    def make(folder: Path) -> None:
        model, card = small_network()
        gated = {"instructions": "none there is", "measured": []}
        build_release(model, save(folder / "checkpoint", model, card), folder / "release", gated=gated)

    return made_once(tmp_path_factory, "split", make) / "release"


@pytest.fixture(scope="session")
def small_fp16(small_release) -> Exported:
    model, _ = small_network()
    graph = load_checked(small_release / "m2ost" / "1" / "model.onnx", SMALL.views)
    return Exported(model, FusedM2OST(model, "fp16").eval(), graph)


@pytest.fixture(scope="session")
def shipped_fp16(heavy, tmp_path_factory, section, selection) -> tuple[Path, Manifest]:
    """The shipped checkpoint in fp16, judged on real spots, with a TensorRT-RTX engine."""

    def make(folder: Path) -> None:
        with shipped_checkpoint() as checkpoint:
            model, card = load(checkpoint)
        views = slide_views(section, model.config.views, spots=selection, most=16)
        options = {"spots": (section.name, views)}
        options["engines"] = EngineOptions(toolkit="tensorrt-rtx", compute_capabilities=("12.0",))
        build_release(model, card, folder / "release", precision="fp16", **options)

    release = made_once(tmp_path_factory, "shipped-fp16", make) / "release"
    return release, Manifest.read(release)
