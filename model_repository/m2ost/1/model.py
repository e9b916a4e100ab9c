"""The engine on ONNX Runtime in Triton's Python backend: VIEW0 … → EXPRESSION."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from m2ost_preprocess import serving
from m2ost_preprocess.contract import EXPRESSION, sha256_file


class TritonPythonModel:
    """One session, run once for each execution of Triton's, whatever the number of requests in it."""

    def initialize(self, args):
        serving.check_environment()
        info = serving.engine_info(args["model_config"])
        onnx = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        found = sha256_file(onnx)
        if found != info.onnx_sha256:
            raise RuntimeError(f"{onnx}: sha256 is {found}, the release says {info.onnx_sha256}; export it anew")
        self._session, self._large = serving.cpu_session(onnx)
        self._views = info.views.names
        family = pb_utils.MetricFamily(
            name="m2ost_engine_session_runs_total",
            description="ONNX Runtime session runs",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._families = [family]
        self._runs = family.Metric(labels={"model": args["model_name"]})

    def execute(self, requests):
        batch = {}
        for name in self._views:
            parts = [np.from_dlpack(pb_utils.get_input_tensor_by_name(r, name)) for r in requests]
            batch[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        sizes = [len(part) for part in parts]
        options = self._large if sum(sizes) > serving.KEEP_MEMORY_ROWS else None
        expression = self._session.run([EXPRESSION], batch, options)[0]
        self._runs.increment(1)
        parts = np.split(expression, np.cumsum(sizes)[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor(EXPRESSION, part)]) for part in parts]
