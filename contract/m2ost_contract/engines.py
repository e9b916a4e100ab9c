"""Engines by name, and the engine files of a release: what its manifest says of them, and which one runs where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import M2OSTError

ENGINE_PARAMETER = "engine"
"""Parameter of the config of ``m2ost``, Python backend: one of ``CHOICES``. Nothing else is ever tried in its place."""

ONNXRUNTIME_CPU = "onnxruntime-cpu"
ONNXRUNTIME_CUDA = "onnxruntime-cuda"
OPENVINO_CPU = "openvino-cpu"
OPENVINO_CPU_BF16 = "openvino-cpu-bf16"
TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"
CHOICES = (
    ONNXRUNTIME_CPU,
    ONNXRUNTIME_CUDA,
    OPENVINO_CPU,
    OPENVINO_CPU_BF16,
    TENSORRT,
    TENSORRT_RTX,
)

INSTRUCTIONS_PARAMETER = "engine_instructions"
"""Parameter of the config of ``m2ost``: the instruction set with which the release passed the gate of its engine in
bfloat16, and the only one that the engine runs on."""

THREADS_PARAMETER = "engine_threads"
"""Parameter of the config of ``m2ost``: threads of an engine on the CPU; where it is absent or ``all``, one a core."""
RUNS_PARAMETER = "engine_runs"
"""Parameter of the config of ``m2ost``: batches that an engine on the CPU runs at a time, each with its share of the
threads; 1 where it is absent."""
SPINNING_PARAMETER = "engine_spinning"
"""Parameter of the config of ``m2ost``: ``1`` lets ONNX Runtime's threads spin while they wait; ``0`` by default."""


class EngineError(M2OSTError, RuntimeError):
    """An engine cannot run here as it was asked for; the message says what to do."""


@dataclass(frozen=True)
class EnginePlan:
    """One engine file of a release, as its manifest describes it.

    Parameters
    ----------
    toolkit : str
        What built it and must run it: ``tensorrt`` or ``tensorrt-rtx``.
    version : str
        Of the toolkit; a plan runs with no other.
    compute_capability : str
        Of the GPU that it is for, e.g. ``8.9``.
    precision : str
        ``fp32``, ``fp16`` or ``bf16``: that of its matrix multiplications.
    file : str
        Path below the release.
    sha256, onnx_sha256 : str
        Of the file, and of the graph it was built from.
    size_bytes : int
        Of the file.
    rows : tuple of int
        Fewest, best and most rows of a batch: the optimisation profile.
    network : dict of str to int
        Layers of the parsed, strongly typed network: ``MATRIX_MULTIPLY HALF`` → how many.
    attention : int
        Attentions that the builder recognised as such, by its log.
    weights_bytes, activation_bytes : int or None
        GPU memory for the weights, and for what flows at the most rows, by the builder's log; None where it is silent.
    inspected : bool
        Whether the engine itself was read on its GPU after it was built.
    engine : dict of str to int
        Layers of the engine where it was inspected: ``gemm FP16`` → how many; else empty.
    fp32_size_bytes : int or None
        Size of the same engine in float32, where a reduced precision was proved by size.
    driver : str
        CUDA driver of the machine that built it; empty where it had none.
    """

    toolkit: str
    version: str
    compute_capability: str
    precision: str
    file: str
    sha256: str
    onnx_sha256: str
    size_bytes: int
    rows: tuple[int, int, int]
    network: dict[str, int]
    attention: int
    weights_bytes: int | None
    activation_bytes: int | None
    inspected: bool
    engine: dict[str, int]
    fp32_size_bytes: int | None
    driver: str

    @property
    def max_rows(self) -> int:
        """Most rows of a batch."""
        return self.rows[2]


def plan_for(engines: Sequence[EnginePlan], runtime: str, compute_capability: str) -> EnginePlan:
    """The plan for one kind of GPU.

    Parameters
    ----------
    engines : sequence of EnginePlan
        Those of the release.
    runtime : str
        ``tensorrt`` or ``tensorrt-rtx``.
    compute_capability : str
        Of the GPU at hand, e.g. ``8.9``.

    Raises
    ------
    EngineError
        If the release has none; says for which GPUs it has.
    """
    built = [engine for engine in engines if engine.toolkit == runtime]
    for engine in built:
        if engine.compute_capability == compute_capability:
            return engine
    found = ", ".join(sorted(engine.compute_capability for engine in built)) or "no GPU at all"
    raise EngineError(
        f"this GPU has compute capability {compute_capability}; the release has a {runtime} engine for {found}. "
        f"Build one on this machine: m2ost build-engine RELEASE --engine {runtime} --out NEW_RELEASE"
    )


def supports_version(built_with: str, found: str) -> bool:
    """Whether a runtime reads a plan: a plan is tied to the version that built it, up to the build's number."""
    return built_with.split(".")[:3] == found.split(".")[:3]
