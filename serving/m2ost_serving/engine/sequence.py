"""The stage for slides of a slide-level release, on ONNX Runtime's CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from m2ost_contract import EXPRESSION, FEATURES, POSITION, SEQUENCE_FILE, EngineError, Release

from .base import CpuThreads, Expression
from .onnx import cpu_session, give_memory_back


class SequenceEngine:
    """The stage for slides, one slide at a time.

    Parameters
    ----------
    release : Release
        Slide-level.
    threads : CpuThreads, optional
        By default one for each core of this process's CPU set.

    Raises
    ------
    EngineError
        If the release predicts each spot by itself.
    ReleaseError
        If the graph is not the release's.
    """

    def __init__(self, release: Release, threads: CpuThreads | None = None) -> None:
        import onnxruntime as ort

        if release.engine.slide_level is None or release.sequence is None:
            raise EngineError(f"{release.folder}: predicts each spot by itself, and has no stage for slides")
        release.check([SEQUENCE_FILE])
        threads = threads or CpuThreads()
        self._level = release.engine.slide_level
        self._session = cpu_session(release.sequence, threads)
        self._memory = give_memory_back()  # a large slide takes gigabytes, the next one may be small
        self.description = f"ONNX Runtime {ort.__version__}, CPU, {threads.count} threads"

    def run(self, features: np.ndarray[Any, Any], positions: np.ndarray[Any, Any]) -> Expression:
        """Score a slide.

        Parameters
        ----------
        features : ndarray of float32, shape (n, d)
            Of all its spots.
        positions : ndarray of int32, shape (n, 2)
            x, y on the array.

        Returns
        -------
        ndarray of float32, shape (n, G)

        Raises
        ------
        PositionsError
            If the network does not know these positions.
        """
        self._level.check(positions, len(features), whose=FEATURES)
        given = {FEATURES: np.ascontiguousarray(features), POSITION: np.ascontiguousarray(positions)}
        expression: Expression = self._session.run([EXPRESSION], given, self._memory)[0]
        return expression
