"""The engines of a release: built for each GPU asked for, proved to be what was asked for, described."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from m2ost_contract import MAX_ROWS, MODEL_ENGINE, EngineInfo, EnginePlan, sha256_file
from m2ost_contract.progress import tell

from ..errors import EngineBuildError
from ..onnx_files import as_float32, describe, load_checked
from .builder import build_engine, check_weights_bytes, read_timing_cache, write_timing_cache
from .gpu import Driver, current, find_driver
from .inspector import check_engine_precision, count_engine_layers, inspect_engine
from .toolkit import Toolkit, load_toolkit

OPT_ROWS = 32
"""Rows of a client's requests by default, and of the batches that the tiler joins on a CPU. What a server on a GPU
reaches, ``make gpu-check`` and Locust's reports tell (``rows_per_execution``): build for that."""

MIN_SHARE_OF_SAVING = 0.75
"""Of the bytes that smaller weights save, how many the engine must be smaller by than its float32 twin."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which engines to build.

    Parameters
    ----------
    toolkit : str
        ``tensorrt`` or ``tensorrt-rtx``.
    compute_capabilities : tuple of str
        Of the GPUs to build for, e.g. ``("8.0", "8.9")``; empty for those at hand.
    opt_rows : int
        Rows of the batches that the engines should be best at; they take 1 to ``MAX_ROWS``.
    timing_cache : Path, optional
        Where TensorRT keeps its kernels' timings between builds; read where it exists, and written.

    Raises
    ------
    EngineBuildError
        If ``opt_rows`` lies outside the profile.
    """

    toolkit: str
    compute_capabilities: tuple[str, ...] = ()
    opt_rows: int = OPT_ROWS
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.opt_rows <= MAX_ROWS:
            raise EngineBuildError(f"--opt-rows {self.opt_rows}: an engine takes batches of 1 to {MAX_ROWS} rows")


@dataclass(frozen=True)
class Twin:
    """The float32 twin of an engine of reduced precision.

    Parameters
    ----------
    size_bytes : int
        Of the twin.
    saving_bytes : int
        By how much the reduced graph's weights are smaller than the twin's.
    """

    size_bytes: int
    saving_bytes: int


def find_targets(options: EngineOptions) -> tuple[Toolkit, Driver, tuple[str, ...]]:
    """The toolkit, this machine's driver, and the compute capabilities to build for: quick, and asked before all else.

    Raises
    ------
    EngineBuildError
        If the toolkit is missing or cannot build for a GPU that was asked for.
    """
    toolkit, driver = load_toolkit(options.toolkit), find_driver()
    return toolkit, driver, toolkit.targets(options.compute_capabilities, driver)


def build_plans(onnx_path: Path, info: EngineInfo, options: EngineOptions) -> tuple[EnginePlan, ...]:
    """Build a release's engines beside its ONNX file.

    Parameters
    ----------
    onnx_path : Path
        The graph, in its place in the release.
    info : EngineInfo
        Its precision and views.
    options : EngineOptions

    Returns
    -------
    tuple of EnginePlan
        One a compute capability.

    Raises
    ------
    EngineBuildError
        If the toolkit is missing or cannot build for a GPU that was asked for, or an engine came out in another
        precision.
    """
    toolkit, driver, targets = find_targets(options)
    cache = read_timing_cache(options.timing_cache) if options.timing_cache else b""
    graph_bytes = sum(describe(load_checked(onnx_path, info.views))["weight_bytes"].values())
    plans: list[EnginePlan] = []
    twin: Twin | None = None
    for index, capability in enumerate(targets):
        tell(f"compute capability {capability}", index, len(targets))
        gpu = driver.gpu_with(capability)
        engine: Mapping[str, int] = {}
        twin_bytes = None
        told = False
        with current(gpu) if gpu else nullcontext():
            built = build_engine(
                toolkit,
                onnx_path.read_bytes(),
                info.views,
                precision=info.precision,
                compute_capability=capability,
                opt_rows=options.opt_rows,
                timing_cache=cache,
            )
            if built.weights_bytes is not None:
                check_weights_bytes(built.weights_bytes, graph_bytes, info.precision)
            if gpu:
                shapes = {name: (options.opt_rows, *info.views.shape) for name in info.views.names}
                information = inspect_engine(toolkit, built.data, shapes)
                told = check_engine_precision(information, info.precision)
                engine = count_engine_layers(information)
            if not told and info.precision != "fp32":
                twin = twin or _build_twin(toolkit, onnx_path, info, options, capability)
                check_size(len(built.data), twin, info.precision)
                twin_bytes = twin.size_bytes
        cache = built.timing_cache
        number = capability.replace(".", "")
        path = onnx_path.with_name(f"model-{'rtx-' if toolkit.ahead_of_time else ''}sm{number}.plan")
        path.write_bytes(built.data)
        plans.append(
            EnginePlan(
                toolkit=toolkit.name,
                version=toolkit.version,
                compute_capability=capability,
                precision=info.precision,
                file=f"{MODEL_ENGINE}/1/{path.name}",
                sha256=sha256_file(path),
                onnx_sha256=info.onnx_sha256,
                size_bytes=len(built.data),
                rows=(1, options.opt_rows, MAX_ROWS),
                network=built.network,
                attention=built.attention,
                weights_bytes=built.weights_bytes,
                activation_bytes=built.activation_bytes,
                inspected=gpu is not None,
                engine=dict(engine),
                fp32_size_bytes=twin_bytes,
                driver=driver.cuda_version,
            )
        )
    if options.timing_cache and cache:
        write_timing_cache(options.timing_cache, cache)
    return tuple(plans)


def check_size(size_bytes: int, twin: Twin, precision: str) -> None:
    """Refuse an engine that is not smaller than its float32 twin by most of what its weights save.

    Parameters
    ----------
    size_bytes : int
        Of the engine.
    twin : Twin
        Of the same network.
    precision : str
        What was asked for.

    Raises
    ------
    EngineBuildError
        With both sizes: the builder kept the weights in float32.
    """
    if twin.size_bytes - size_bytes < MIN_SHARE_OF_SAVING * twin.saving_bytes:
        raise EngineBuildError(
            f"an engine in {precision} was asked for; it has {size_bytes:,} bytes and its float32 twin "
            f"{twin.size_bytes:,}, though the weights alone save {twin.saving_bytes:,}: it came out in float32"
        )


def _build_twin(toolkit: Toolkit, onnx_path: Path, info: EngineInfo, options: EngineOptions, capability: str) -> Twin:
    graph = load_checked(onnx_path, info.views)
    twin = as_float32(graph)
    built = build_engine(
        toolkit,
        twin.SerializeToString(),
        info.views,
        precision="fp32",
        compute_capability=capability,
        opt_rows=options.opt_rows,
    )
    saving = sum(describe(twin)["weight_bytes"].values()) - sum(describe(graph)["weight_bytes"].values())
    return Twin(len(built.data), saving)
