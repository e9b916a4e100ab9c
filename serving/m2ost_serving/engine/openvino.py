"""The release's ONNX graph on OpenVINO's CPU plugin, in float32."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2ost_contract import MAX_ROWS, EngineError, ViewGeometry

from ..devices import Device, HostDevice
from .base import KEEP_MEMORY_ROWS, CpuThreads, Expression, check_batch


class OpenVinoEngine:
    """A compiled model and one request of it.

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
        self._request = self._compiled.create_infer_request()
        self.description = f"OpenVINO {ov.__version__}, CPU, float32, {threads.count} threads"

    def run(self, batch: Mapping[str, Any]) -> Expression:
        """See :class:`~m2ost_serving.engine.base.Engine`."""
        rows = check_batch(batch, self._geometry, MAX_ROWS)
        self._request.infer(dict(batch), share_inputs=True)
        # The tensor is the request's own, and the next run writes into it.
        expression: Expression = self._request.get_output_tensor(0).data.copy()
        if rows > KEEP_MEMORY_ROWS:
            self._compiled.release_memory()
        return expression


def compile_graph(onnx: Path, threads: CpuThreads, *, precision: str = "f32") -> Any:
    """A graph compiled for the CPU and one request at a time.

    Parameters
    ----------
    onnx : Path
        The graph.
    threads : CpuThreads
        How many.
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
        "NUM_STREAMS": 1,
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
        raise EngineError(f"no OpenVINO ({error}); run: pip install 'm2ost-triton[openvino]'") from error
    return openvino
