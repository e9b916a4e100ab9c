"""An engine file of a release: what the manifest says of it."""

from __future__ import annotations

from dataclasses import dataclass


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
