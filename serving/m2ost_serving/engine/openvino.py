"""The release's ONNX graph on OpenVINO's CPU plugin, in float32."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from m2ost_contract import MAX_ROWS, EngineError, ViewGeometry, install_command

from ..devices import Device, HostDevice
from .base import KEEP_MEMORY_ROWS, CpuThreads, Expression, check_batch


class OpenVinoEngine:
    """A compiled model, and as many requests of it as runs at a time.

    Parameters
    ----------
    onnx : Path
        The graph.
    geometry : ViewGeometry
        The views it takes.
    threads : CpuThreads, optional
        By default one for each core of this process's CPU set.

    Raises
    ------
    EngineError
        If OpenVINO is not installed.
    """

    def __init__(self, onnx: Path, geometry: ViewGeometry, threads: CpuThreads | None = None) -> None:
        ov, threads = import_openvino(), threads or CpuThreads()
        self.device: Device = HostDevice()
        self._geometry = geometry
        self._compiled = compile_graph(onnx, threads)
        self.runs = threads.runs
        self._requests = Requests([self._compiled], threads.runs)
        self.description = f"OpenVINO {ov.__version__}, CPU, float32, {threads.in_words}"

    def run(self, batch: Mapping[str, Any]) -> Expression:
        """See :class:`~m2ost_serving.engine.base.Engine`."""
        rows = check_batch(batch, self._geometry, MAX_ROWS)
        with self._requests.taken() as (request,):
            request.infer(dict(batch), share_inputs=True)
            # The tensor is the request's own, and the next run writes into it.
            expression: Expression = request.get_output_tensor(0).data.copy()
        if rows > KEEP_MEMORY_ROWS:
            self._requests.give_memory_back()
        return expression


class Requests:
    """Requests of compiled models: as many of each as runs at a time."""

    def __init__(self, compiled: Sequence[Any], runs: int) -> None:
        self._compiled, self._runs = compiled, runs
        self._free: SimpleQueue[list[Any]] = SimpleQueue()
        self._alone = threading.Lock()
        for _ in range(runs):
            self._free.put([model.create_infer_request() for model in compiled])

    @contextmanager
    def taken(self) -> Iterator[list[Any]]:
        """A request of each model, for one run."""
        requests = self._free.get()
        try:
            yield requests
        finally:
            self._free.put(requests)

    def give_memory_back(self) -> None:
        """Have the models let go of what large runs took. OpenVINO refuses that while any request runs."""
        with self._alone:
            taken = [self._free.get() for _ in range(self._runs)]
            try:
                for model in self._compiled:
                    model.release_memory()
            finally:
                for requests in taken:
                    self._free.put(requests)


def compile_graph(onnx: Path, threads: CpuThreads, *, precision: str = "f32") -> Any:
    """A graph compiled for the CPU.

    Parameters
    ----------
    onnx : Path
        The graph.
    threads : CpuThreads
        How many, and of how many requests at a time.
    precision : str
        What OpenVINO may compute in, in its own words. On a processor with bfloat16 it would take that unasked, and a
        release in float32 is promised within 1e-4 of its network.

    Returns
    -------
    openvino.CompiledModel

    Raises
    ------
    EngineError
        If OpenVINO is not installed.
    """
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": threads.runs,
        "INFERENCE_NUM_THREADS": threads.count,
        "INFERENCE_PRECISION_HINT": precision,
        # A thread bound to one core would wait there for the tiler while another core is free.
        "ENABLE_CPU_PINNING": False,
    }
    return import_openvino().Core().compile_model(onnx, "CPU", properties)


def import_openvino() -> Any:
    """The ``openvino`` module, without the one by which it reports to its maker, which no variable turns off.

    Raises
    ------
    EngineError
        If it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # to an import, it is not there
    try:
        import openvino
    except ImportError as error:
        raise EngineError(f"no OpenVINO ({error}); run: {install_command('openvino')}") from error
    return openvino
