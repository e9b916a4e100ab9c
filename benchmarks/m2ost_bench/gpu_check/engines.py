"""A release's engines as they are built and served: loaded by the very code that Triton's Python backend runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m2ost_contract import ONNXRUNTIME_CPU, ONNXRUNTIME_CUDA, TENSORRT, TENSORRT_RTX, Release, install_command
from m2ost_serving.engine import load_engine

from .device import Device
from .parts import Outcome, Skip, need

Scorer = Callable[[Sequence[Any]], Any]
"""Views (uint8, C-contiguous, one array or tensor a view, by DLPack) → expression on the host, ndarray of float32."""

TOOLKITS = (TENSORRT, TENSORRT_RTX)


def onnxruntime_scorer(release: Path, device: Device) -> Scorer:
    """A release's graph on ONNX Runtime: on CUDA, or on the CPU where that is checked.

    Raises
    ------
    Skip
        If ONNX Runtime or CuPy is missing, or ONNX Runtime was built without CUDA.
    EngineError
        If it was built with CUDA and does not run there.
    """
    ort = need("onnxruntime", install="pip install onnxruntime-gpu")
    if device.kind == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise Skip(f"onnxruntime {ort.__version__} was built without CUDA; pip install onnxruntime-gpu")
    return load_scorer(release, ONNXRUNTIME_CPU if device.kind == "cpu" else ONNXRUNTIME_CUDA, device)


def build_with(toolkit: str, release: Path, destination: Path, device: Device, outcome: Outcome) -> None:
    """Build a release's engine for this GPU, as ``m2ost build-engine`` does; the outcome keeps what is said of it.

    Parameters
    ----------
    toolkit : str
        ``tensorrt`` or ``tensorrt-rtx``.
    release : Path
        The release to start from.
    destination : Path
        The new one.
    device : Device
    outcome : Outcome

    Raises
    ------
    Skip
        If there is no GPU, the toolkit is missing, or it does not build for this GPU.
    EngineBuildError
        If the engine cannot be built, or came out in another precision.
    """
    if device.kind != "cuda":
        raise Skip(f"{toolkit} runs on GPUs only")
    adding = need("m2ost_export.engine_release", install=install_command(toolkit))
    from m2ost_export.engines import EngineOptions, find_targets
    from m2ost_export.errors import EngineBuildError

    options = EngineOptions(toolkit=toolkit)
    try:
        find_targets(options)
    except EngineBuildError as error:
        raise Skip(str(error)) from error
    manifest = adding.add_engines(release, destination, options)
    outcome.figures["engines"] = [asdict(plan) for plan in manifest.engines if plan.toolkit == toolkit]


def load_scorer(release: Path, engine: str, device: Device) -> Scorer:
    """An engine of a release.

    Parameters
    ----------
    release : Path
        The release.
    engine : str
        As a config's parameter ``engine`` names it.
    device : Device

    Raises
    ------
    Skip
        If CuPy does not work here.
    EngineError
        If the engine does not run here.
    """
    device.arrays()
    opened = Release.open(release)
    loaded = load_engine(opened, engine, device.index)

    def score(views: Sequence[Any]) -> Any:
        arrays = [loaded.device.join([view]) for view in views]
        return loaded.run(dict(zip(opened.engine.views.names, arrays, strict=True)))

    return score
