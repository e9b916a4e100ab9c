"""The release's graph for dense maps on ONNX Runtime's CPU: every distinct patch of a batch is embedded once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from m2ost_contract import EXPRESSION, MAX_ROWS, ViewGeometry

from ..devices import Device, HostDevice
from .base import KEEP_MEMORY_ROWS, CpuThreads, Expression, check_batch
from .onnx import cpu_session, give_memory_back
from .patches import PatchGeometry, share


class DenseOnnxEngine:
    """An ONNX Runtime session that takes the distinct patches of a batch.

    Any spots may be scored: where their views have nothing in common, nothing is shared.

    Parameters
    ----------
    onnx : Path
        The graph.
    geometry : ViewGeometry
        The views the engine takes.
    patch_px : int
        Side of the patches that the network cuts from whole views.
    threads : CpuThreads, optional
        By default one for each core of this process's CPU set.

    Attributes
    ----------
    patches, embedded : int
        Patches of all batches so far, and those that were embedded.
    """

    def __init__(self, onnx: Path, geometry: ViewGeometry, patch_px: int, threads: CpuThreads | None = None) -> None:
        import onnxruntime as ort

        self.device: Device = HostDevice()
        self._geometry = geometry
        self._patches = PatchGeometry(geometry.size_px, patch_px, geometry.n_views)
        self._session = cpu_session(onnx, threads)
        self._large_run = give_memory_back()
        self.patches = self.embedded = 0
        self.description = f"ONNX Runtime {ort.__version__}, CPUExecutionProvider 0, equal patches embedded once"

    def run(self, batch: Mapping[str, Any]) -> Expression:
        """See :class:`~m2ost_serving.engine.base.Engine`."""
        rows = check_batch(batch, self._geometry, MAX_ROWS)
        shared = share([batch[name] for name in self._geometry.names], self._patches)
        self.patches += rows * len(self._patches.patchings) * self._patches.tokens_per_patching
        self.embedded += sum(map(len, shared.patches))
        options = self._large_run if rows > KEEP_MEMORY_ROWS else None
        expression = self._session.run([EXPRESSION], shared.to_feed(self._patches), options)[0]
        return np.asarray(expression, np.float32)
