"""Body and tail of a network on OpenVINO's CPU plugin: the body in bfloat16, the tail in float32."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from m2ost_contract import EXPRESSION, MAX_ROWS, EngineError, ViewGeometry

from ..devices import Device, HostDevice
from .base import KEEP_MEMORY_ROWS, CpuThreads, Expression, check_batch
from .openvino import Requests, compile_graph, import_openvino

TOKENS, MEANS = "TOKENS", "MEANS"
"""What the body hands to the tail."""

_PROBE_ROWS, _PROBE_WIDTH, _PROBE_ROUNDS = 4096, 256, 7
"""Of the product that is computed to learn how bfloat16 is done here, and how fast: a few milliseconds."""


class MixedOpenVinoEngine:
    """Two compiled models, one after the other.

    Parameters
    ----------
    body, tail : Path
        The graphs.
    geometry : ViewGeometry
        The views that the body takes.
    threads : CpuThreads, optional
        By default one for each core of this process's CPU set.

    Attributes
    ----------
    instructions : str
        See :func:`bf16_instructions`.

    Raises
    ------
    EngineError
        If OpenVINO is not installed, or does not compute in bfloat16 on this processor.
    """

    def __init__(self, body: Path, tail: Path, geometry: ViewGeometry, threads: CpuThreads | None = None) -> None:
        self.instructions = bf16_instructions()
        ov, threads = import_openvino(), threads or CpuThreads()
        self.device: Device = HostDevice()
        self._geometry = geometry
        self._compiled = [compile_graph(body, threads, precision="bf16"), compile_graph(tail, threads)]
        self.runs = threads.runs
        self._requests = Requests(self._compiled, threads.runs)
        self.description = (
            f"OpenVINO {ov.__version__}, CPU, body bfloat16 by {self.instructions}, tail float32, {threads.in_words}"
        )

    def run(self, batch: Mapping[str, Any]) -> Expression:
        """See :class:`~m2ost_serving.engine.base.Engine`."""
        rows = check_batch(batch, self._geometry, MAX_ROWS)
        with self._requests.taken() as (body, tail):
            body.infer(dict(batch), share_inputs=True)
            tail.infer({name: body.get_tensor(name) for name in (TOKENS, MEANS)}, share_inputs=True)
            # The tensor is the request's own, and the next run writes into it.
            expression: Expression = tail.get_tensor(EXPRESSION).data.copy()
        if rows > KEEP_MEMORY_ROWS:
            self._requests.give_memory_back()
        return expression


def bf16_instructions() -> str:
    """The instruction set by which OpenVINO computes in bfloat16 here: ``avx512_bf16`` or ``amx_bf16``.

    It is read from what OpenVINO chose for a small product. Asked for bfloat16 where the processor, or the limit that
    ``OV_CPU_MAX_ISA`` sets, has none, OpenVINO computes in float32 without a word.

    Raises
    ------
    EngineError
        If OpenVINO is not installed, or does not compute in bfloat16 on this processor.
    """
    ov = import_openvino()
    core = ov.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in able:
        name = core.get_property("CPU", "FULL_DEVICE_NAME")
        raise EngineError(
            f"OpenVINO {ov.__version__} does not compute in bfloat16 on this machine: of {name} it can use "
            f"{', '.join(able)}; bfloat16 needs a processor with avx512_bf16 or amx_bf16, and OV_CPU_MAX_ISA, where it "
            "is set, must allow it; serve with --profile cpu-openvino or cpu"
        )
    compiled = _product("bf16")
    compiled([np.ones((1, _PROBE_WIDTH), np.float32)])
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    (kernel,) = (fact["primitiveType"].value for fact in facts if fact["layerType"].value == "FullyConnected")
    if not kernel.endswith("_bf16"):
        raise EngineError(
            f"OpenVINO {ov.__version__} was asked for bfloat16 and took the kernel {kernel}; serve with --profile "
            "cpu-openvino or cpu"
        )
    return "amx_bf16" if "amx" in kernel else "avx512_bf16"


def bf16_gain() -> float:
    """How many times as fast as in float32 OpenVINO computes a product in bfloat16 here, by processor time.

    Processors differ in what bfloat16 is worth: AMD's do twice the work in one instruction, Intel's without AMX hardly
    more than in float32.

    Raises
    ------
    EngineError
        If OpenVINO is not installed.
    """
    rows = [np.ones((_PROBE_ROWS, _PROBE_WIDTH), np.float32)]
    products = {precision: _product(precision) for precision in ("f32", "bf16")}
    for product in products.values():
        product(rows)
    seconds: dict[str, list[float]] = {precision: [] for precision in products}
    for _ in range(_PROBE_ROUNDS):
        for precision, product in products.items():
            before = time.process_time()
            product(rows)
            seconds[precision].append(time.process_time() - before)
    return median(a / b for a, b in zip(seconds["f32"], seconds["bf16"], strict=True))


def _product(precision: str) -> Any:
    """A compiled product of some rows with a square matrix."""
    ov = import_openvino()
    ops, side = ov.opset13, _PROBE_WIDTH
    rows = ops.parameter([-1, side], ov.Type.f32)
    product = ops.matmul(rows, ops.constant(np.ones((side, side), np.float32)), False, True)
    properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
    return ov.Core().compile_model(ov.Model([product], [rows]), "CPU", properties)
