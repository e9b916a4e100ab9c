"""A plan on TensorRT or TensorRT-RTX: the same API under two names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2ost_contract import EXPRESSION, TENSORRT, TENSORRT_RTX, EngineError, ViewGeometry

from ..devices import CudaDevice, Device
from .base import Expression, check_batch

MODULES = {TENSORRT: ("tensorrt",), TENSORRT_RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""Python modules of a runtime, the first that is installed taken. The wheel of the bindings has the second name."""


class TensorRTEngine:
    """An execution context of a plan.

    Parameters
    ----------
    plan : Path
        The serialised engine.
    geometry : ViewGeometry
        The views it takes.
    runtime : str
        ``tensorrt`` or ``tensorrt-rtx``.
    device : CudaDevice
        The GPU that it was built for, and the stream to work on.

    Raises
    ------
    EngineError
        If the runtime is not installed, cannot read the plan, or the plan's tensors are not those of the contract.
    """

    def __init__(self, plan: Path, geometry: ViewGeometry, runtime: str, device: CudaDevice) -> None:
        trt = import_runtime(runtime)
        self.device: Device = device
        self.runs = 1
        self._geometry = geometry
        self._stream = device.stream_pointer
        # The runtime is kept as long as its engine, the engine as long as its context.
        with device.current():
            self._runtime, self._engine = deserialize(trt, plan)
        for name in geometry.names:
            if self._engine.get_tensor_dtype(name) != trt.uint8:
                raise EngineError(f"{plan}: {name} is not uint8; export the release anew")
        if self._engine.get_tensor_dtype(EXPRESSION) != trt.float32:
            raise EngineError(f"{plan}: {EXPRESSION} is not float32; export the release anew")
        self._genes = self._engine.get_tensor_shape(EXPRESSION)[1]
        self._max_rows = min(self._engine.get_tensor_profile_shape(name, 0)[2][0] for name in geometry.names)
        with device.current():
            self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{plan}: no execution context; the GPU's memory may be full, see nvidia-smi")
        self.description = f"{runtime} {trt.__version__}, {plan.name}, cuda {device.index}, up to {self._max_rows} rows"

    def run(self, batch: Mapping[str, Any]) -> Expression:
        """See :class:`~m2ost_serving.engine.base.Engine`."""
        rows, device = check_batch(batch, self._geometry, self._max_rows), self.device
        expression = device.empty((rows, self._genes))
        for name, array in batch.items():
            if not self._context.set_input_shape(name, array.shape):
                raise RuntimeError(f"TensorRT refuses the shape {array.shape} for {name}")
            self._context.set_tensor_address(name, device.pointer(array))
        self._context.set_tensor_address(EXPRESSION, device.pointer(expression))
        with device.current():
            begun = self._context.execute_async_v3(self._stream)
        if not begun:
            raise RuntimeError(f"TensorRT could not run a batch of {rows} rows")
        return device.to_host(expression)


def import_runtime(runtime: str) -> Any:
    """The Python module of a runtime.

    Raises
    ------
    EngineError
        If it is not installed.
    """
    for module in MODULES[runtime]:
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise EngineError(f"the Python module of {runtime} is not installed here; `m2ost doctor` says how to get it")


def deserialize(trt: Any, plan: Path) -> tuple[Any, Any]:
    """Read a plan.

    Parameters
    ----------
    trt : module
        The runtime's.
    plan : Path
        The serialised engine.

    Returns
    -------
    runtime, engine
        To be kept together.

    Raises
    ------
    EngineError
        If it cannot be read, with the runtime's words.
    """

    class Words(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    words = Words()
    runtime = trt.Runtime(words)
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise EngineError(
            f"{plan}: {trt.__name__} {trt.__version__} cannot read this plan: {'; '.join(words.errors)}. "
            "A plan is tied to the version and the GPU it was built with: m2ost doctor"
        )
    return (runtime, words), engine
