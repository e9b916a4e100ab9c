"""One engine out of one graph: parse, check the types of the network, build."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2ost_contract import EXPRESSION, MAX_ROWS, ViewGeometry, complete_file

from ..errors import EngineBuildError
from .toolkit import Toolkit

_DTYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
"""TensorRT's name of a type, by the name of the precision."""

_HEAD = 1
"""Matrix multiplications that stay in float32 at every precision: the head's."""


MAX_WEIGHTS_GROWTH = 1.5
"""How much more memory an engine's weights may take than its graph's: half of what float32 in place of float16 adds."""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine file's bytes, and what was seen on the way to them.

    Parameters
    ----------
    data : bytes
        The serialized engine.
    network : dict of str to int
        Layers of the parsed network: ``MATRIX_MULTIPLY HALF`` → how many.
    attention : int
        Softmaxes that the builder's log says it took as part of attention.
    weights_bytes, activation_bytes : int or None
        Memory of the weights, and of what flows at ``MAX_ROWS`` rows, by the builder's log; None where it says nothing.
    timing_cache : bytes
        To build faster the next time; empty where the toolkit measures nothing.
    """

    data: bytes
    network: dict[str, int]
    attention: int
    weights_bytes: int | None
    activation_bytes: int | None
    timing_cache: bytes


def build_engine(
    toolkit: Toolkit,
    onnx: bytes,
    geometry: ViewGeometry,
    *,
    precision: str,
    compute_capability: str,
    opt_rows: int,
    timing_cache: bytes = b"",
) -> BuiltEngine:
    """Build an engine for batches of 1 to ``MAX_ROWS`` rows.

    Parameters
    ----------
    toolkit : Toolkit
    onnx : bytes
        The graph.
    geometry : ViewGeometry
        The views that it takes.
    precision : str
        What its matrix multiplications must be in.
    compute_capability : str
        One of ``toolkit.targets``.
    opt_rows : int
        Rows of the batches that it should be best at.
    timing_cache : bytes
        Of an earlier build.

    Raises
    ------
    EngineBuildError
        If the graph cannot be parsed, is of another precision, or the builder fails; quotes the library.
    """
    trt = toolkit.trt
    log = _log_of(trt)
    builder = trt.Builder(log)
    # TensorRT 11 knows strongly typed networks only: the flag is ignored there and may go.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        found = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise EngineBuildError(f"{toolkit.name} {toolkit.version} cannot parse the graph: {'; '.join(found)}")
    layers = count_layers(network)
    _check_tensors(network, geometry)
    check_network_precision(layers, precision)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # TF32 keeps 10 bits of a float32's mantissa: what was checked as float32 would not be what runs.
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    for name in geometry.names:
        profile.set_shape(name, *((rows, *geometry.shape) for rows in (1, opt_rows, MAX_ROWS)))
    config.add_optimization_profile(profile)
    if toolkit.ahead_of_time:
        config.num_compute_capabilities = 1
        config.set_compute_capability(toolkit.offered()[compute_capability], 0)
    else:
        kept = config.create_timing_cache(timing_cache)
        # Another version's or another GPU's timings are not taken; the build then starts from none.
        if kept is None or not config.set_timing_cache(kept, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise EngineBuildError(
            f"{toolkit.name} {toolkit.version} cannot build for compute capability {compute_capability}: "
            f"{'; '.join(log.problems[-3:]) or 'it gives no reason'}"
        )
    timings = b"" if toolkit.ahead_of_time else bytes(config.get_timing_cache().serialize())
    return BuiltEngine(
        data=bytes(data),
        network=layers,
        attention=_count_attention(network, log.details),
        weights_bytes=_bytes_told(log.details, "Total Weights Memory"),
        activation_bytes=_bytes_told(log.details, "Total Activation Memory"),
        timing_cache=timings,
    )


def count_layers(network: Any) -> dict[str, int]:
    """Layers of a parsed network by type and type of their output, most first."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    with_output = [layer for layer in layers if layer.num_outputs]
    return dict(Counter(f"{layer.type.name} {layer.get_output(0).dtype.name}" for layer in with_output).most_common())


def check_network_precision(layers: dict[str, int], precision: str) -> None:
    """Refuse a strongly typed network whose matrix multiplications are not of the precision asked for.

    Parameters
    ----------
    layers : dict of str to int
        As :func:`count_layers` gives them.
    precision : str
        ``fp32``, ``fp16`` or ``bf16``.

    Raises
    ------
    EngineBuildError
        Says what they are instead.
    """
    found = {name.split()[1]: n for name, n in layers.items() if name.startswith("MATRIX_MULTIPLY ")}
    others = {dtype: n for dtype, n in found.items() if dtype != _DTYPES[precision]}
    allowed = {} if precision == "fp32" else {"FLOAT": _HEAD}
    if not found.get(_DTYPES[precision]) or any(n > allowed.get(dtype, 0) for dtype, n in others.items()):
        seen = ", ".join(f"{n} in {dtype}" for dtype, n in found.items()) or "none"
        raise EngineBuildError(
            f"an engine in {precision} was asked for and the graph's matrix multiplications are: {seen}; "
            f"export the checkpoint with --precision {precision}"
        )


def check_weights_bytes(engine_bytes: int, graph_bytes: int, precision: str) -> None:
    """Refuse an engine that holds more than its graph's weights, as one does that turned them into float32.

    Parameters
    ----------
    engine_bytes : int
        Memory of the engine's weights, as its builder tells it.
    graph_bytes : int
        Of the weights in the ONNX file.
    precision : str
        What was asked for.

    Raises
    ------
    EngineBuildError
        With both figures.
    """
    if engine_bytes > MAX_WEIGHTS_GROWTH * graph_bytes:
        raise EngineBuildError(
            f"an engine in {precision} was asked for; its weights take {engine_bytes:,} bytes, those of its graph "
            f"{graph_bytes:,}: it came out in a larger type"
        )


def _count_attention(network: Any, details: list[str]) -> int:
    layers = (network.get_layer(i) for i in range(network.num_layers))
    softmaxes = {layer.name for layer in layers if layer.type.name == "SOFTMAX"}
    found = (re.match(r"Found (\S+) to be part of \S*attention pattern", line) for line in details)
    return len(softmaxes & {match[1] for match in found if match})


def _bytes_told(details: list[str], what: str) -> int | None:
    found = [match[1] for line in details if (match := re.match(rf"{what}: (\d+) bytes", line))]
    return int(found[-1]) if found else None


def _check_tensors(network: Any, geometry: ViewGeometry) -> None:
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    found = [(tensor.name, tensor.dtype.name, *tuple(tensor.shape)[:1]) for tensor in tensors]
    expected = [*((name, "UINT8", -1) for name in geometry.names), (EXPRESSION, "FLOAT", -1)]
    if found != expected:
        raise EngineBuildError(
            f"the parsed network takes and gives {found}, not {expected}; export the checkpoint anew"
        )


def _parser_error(error: Any) -> str:
    return f"{error.desc()} (node {error.node_name()!r}, operator {error.node_operator()!r})"


def read_timing_cache(path: Path) -> bytes:
    """A kept timing cache, or nothing."""
    return path.read_bytes() if path.is_file() else b""


def write_timing_cache(path: Path, cache: bytes) -> None:
    """Keep a timing cache for the next build, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(path) as scratch:
        scratch.write_bytes(cache)


def _log_of(trt: Any) -> Any:
    """A logger of the library's own base class: keeps warnings and errors as problems, all else as details."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problems: list[str] = []
            self.details: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            (self.problems if severity <= trt.ILogger.Severity.WARNING else self.details).append(message)

    return Log()
