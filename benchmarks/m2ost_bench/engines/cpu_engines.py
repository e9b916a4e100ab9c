"""Ways to run a network on a CPU, each in a process of its own that scores views when it is told to.

Thread pools of two runtimes in one process, and threads that spin after their work, would slow one another down: here
whoever waits for its turn sleeps.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import EXPRESSION, ViewGeometry
from m2ost_loadtests.errors import LoadTestError
from m2ost_loadtests.rounds import Seconds, seconds_of
from m2ost_serving.devices import HostDevice
from m2ost_serving.engine import CpuThreads, Engine
from m2ost_serving.engine.mixed import MixedOpenVinoEngine
from m2ost_serving.engine.onnx import OnnxEngine
from m2ost_serving.engine.openvino import OpenVinoEngine, compile_graph

Views = list[np.ndarray[Any, np.dtype[np.uint8]]]
Score = Callable[[Views], Any]

PLAIN = "onnxruntime plain"
REFERENCE = "pytorch"
SCORING_ROWS = 16
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""OpenMP's threads sleep as soon as they have no work."""
START_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Subject:
    """What an engine is made of, the same for all.

    Parameters
    ----------
    published : Path
        The network exported as it is trained.
    release_graph : Path
        The release's ``model.onnx``.
    attention_graph : Path
        The same with every attention as one operator.
    body, tail : Path
        The release's ``body.onnx`` and ``tail.onnx``.
    checkpoint : Path
    geometry : ViewGeometry
    """

    published: Path
    release_graph: Path
    attention_graph: Path
    body: Path
    tail: Path
    checkpoint: Path
    geometry: ViewGeometry


def engines() -> dict[str, tuple[str, Callable[[Subject, int], Score]]]:
    """Name → what it is in words, and what makes it for a number of threads."""
    return {
        PLAIN: (
            "ONNX Runtime, the network exported as it is trained, graph optimisation off",
            lambda s, n: _onnxruntime(s.published, s.geometry, n, optimise=False),
        ),
        "onnxruntime published": (
            "ONNX Runtime, the same graph, all optimisations",
            lambda s, n: _onnxruntime(s.published, s.geometry, n),
        ),
        "onnxruntime-cpu": (
            "as the profile cpu serves: ONNX Runtime, the release's graph, all optimisations",
            lambda s, n: _by_engine(OnnxEngine(s.release_graph, s.geometry, HostDevice(), CpuThreads(n)), s.geometry),
        ),
        "onnxruntime attention": (
            "ONNX Runtime, the release's graph with ONNX's Attention operator",
            lambda s, n: _onnxruntime(s.attention_graph, s.geometry, n),
        ),
        "onnxruntime int8": (
            "ONNX Runtime, the release's graph with int8 weights, activations quantised as they come",
            lambda s, n: _onnxruntime_int8(s.release_graph, s.geometry, n),
        ),
        "openvino-cpu": (
            "as the profile cpu-openvino serves: OpenVINO, the release's graph, float32",
            lambda s, n: _by_engine(OpenVinoEngine(s.release_graph, s.geometry, CpuThreads(n)), s.geometry),
        ),
        "openvino-cpu-bf16": (
            "as the profile cpu-bf16 serves: OpenVINO, the release's body in bfloat16, its tail in float32",
            lambda s, n: _by_engine(MixedOpenVinoEngine(s.body, s.tail, s.geometry, CpuThreads(n)), s.geometry),
        ),
        "openvino bf16": (
            "OpenVINO, the release's graph, its own choice of what is bfloat16",
            lambda s, n: _openvino(s.release_graph, s.geometry, n, "bf16"),
        ),
        REFERENCE: ("PyTorch, eager, float32", lambda s, n: _pytorch(s.checkpoint, n)),
        "pytorch fused": (
            "PyTorch, eager, float32, the network as the release's graph has it",
            lambda s, n: _pytorch(s.checkpoint, n, fused=True),
        ),
        "pytorch bf16": (
            "PyTorch, autocast to bfloat16",
            lambda s, n: _pytorch(s.checkpoint, n, autocast=True),
        ),
    }


def _by_engine(engine: Engine, geometry: ViewGeometry) -> Score:
    return lambda views: engine.run(dict(zip(geometry.names, views, strict=True)))


def _onnxruntime(onnx: Path, geometry: ViewGeometry, threads: int, *, optimise: bool = True) -> Score:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    return lambda views: session.run([EXPRESSION], dict(zip(geometry.names, views, strict=True)))[0]


def _onnxruntime_int8(onnx: Path, geometry: ViewGeometry, threads: int) -> Score:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="m2ost-int8-") as folder:
        quantised = Path(folder) / "int8.onnx"
        quantize_dynamic(onnx, quantised, per_channel=True, weight_type=QuantType.QInt8)
        return _onnxruntime(quantised, geometry, threads)


def _openvino(onnx: Path, geometry: ViewGeometry, threads: int, precision: str) -> Score:
    request = compile_graph(onnx, CpuThreads(threads), precision=precision).create_infer_request()

    def score(views: Views) -> Any:
        request.infer(dict(zip(geometry.names, views, strict=True)), share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return score


def _pytorch(checkpoint: Path, threads: int, *, fused: bool = False, autocast: bool = False) -> Score:
    import torch
    from m2ost.checkpoint import load
    from m2ost_export.forms import only_m2ost
    from m2ost_export.fused import FusedM2OST

    torch.set_num_threads(threads)
    model, _ = load(checkpoint)
    network: torch.nn.Module = FusedM2OST(only_m2ost(model, "its fused form")).eval() if fused else model.eval()

    def score(views: Views) -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return network(*(torch.from_numpy(view) for view in views)).float().numpy()

    return score


def _serve(pipe: Connection, name: str, subject: Subject, threads: int, spots: str) -> None:
    """In the engine's process: answer with the expression of all spots, or with the seconds of a batch."""
    try:
        with np.load(spots) as stored:
            views = [stored[name] for name in stored.files]
        score = engines()[name][1](subject, threads)
        pipe.send(None)
    except Exception as error:  # whatever keeps an engine from running is its finding
        pipe.send(f"{type(error).__name__}: {error}")
        return
    rows = len(views[0])
    while (batch := pipe.recv()) is not None:
        if batch == 0:
            parts = [score([v[i : i + SCORING_ROWS] for v in views]) for i in range(0, rows, SCORING_ROWS)]
            pipe.send(np.concatenate(parts))
            continue
        chosen = [np.resize(view, (batch, *view.shape[1:])) if batch > rows else view[:batch] for view in views]
        pipe.send(seconds_of(partial(score, chosen)))


class EngineProcess:
    """One engine with a number of threads, asleep unless asked. A context manager.

    Parameters
    ----------
    name : str
        One of :func:`engines`.
    subject : Subject
    threads : int
    spots : Path
        ``.npz`` of the spots' views, fine to coarse.

    Attributes
    ----------
    refusal : str
        Why it cannot run here; empty where it can.
    """

    def __init__(self, name: str, subject: Subject, threads: int, spots: Path) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, name, subject, threads, str(spots)), daemon=True)
        with _environment(QUIET):
            self._process.start()
        child.close()
        if not self._pipe.poll(START_TIMEOUT_S):
            self._process.kill()
            raise LoadTestError(f"engine {name!r} was not ready after {START_TIMEOUT_S:g} s")
        self.refusal: str = self._answer() or ""

    def expression(self) -> Any:
        """All spots' expression, shape (n, G)."""
        self._pipe.send(0)
        return self._answer()

    def seconds(self, batch: int) -> Seconds:
        """Of one batch."""
        self._pipe.send(batch)
        seconds: Seconds = self._answer()
        return seconds

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError as error:
            raise LoadTestError(f"the process of engine {self.name!r} died; its words are above") from error

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.is_alive() and not self.refusal:
            self._pipe.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that a process to be started inherits."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
