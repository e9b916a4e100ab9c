"""The engine in Triton's Python backend: VIEW0 … → EXPRESSION. The config's parameter ``engine`` says which."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from m2ost_contract import ENGINE_PARAMETER, EXPRESSION, EngineInfo
from m2ost_preprocess import serving
from m2ost_preprocess.engine import CpuThreads, load_engine
from m2ost_preprocess.queueing import Cancelled


class TritonPythonModel:
    """One engine, run once for each execution of Triton's, for the requests in it whose clients still wait."""

    def initialize(self, args):
        serving.check_environment()
        parameters = serving.parameters(args["model_config"])
        info = EngineInfo.from_parameters(parameters)
        release = Path(args["model_repository"]).parent
        choice, gpu = parameters.get(ENGINE_PARAMETER), int(args["model_instance_device_id"])
        threads = CpuThreads.from_parameters(parameters)
        self._engine = load_engine(release, info, choice, gpu, threads=threads)
        self._views = info.views.names
        pb_utils.Logger.log_info(serving.log_line("engine_loaded", engine=choice, runs_on=self._engine.description))
        family = pb_utils.MetricFamily(
            name="m2ost_engine_session_runs_total",
            description="runs of the engine",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._families = [family]
        self._runs = family.Metric(labels={"model": args["model_name"]})

    def execute(self, requests):
        wanted = [request for request in requests if not request.is_cancelled()]
        parts = iter(self._score(wanted) if wanted else ())
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(EXPRESSION, next(parts))])
            if request in wanted
            else pb_utils.InferenceResponse(error=serving.triton_error(pb_utils, Cancelled("cancelled")))
            for request in requests
        ]

    def _score(self, requests):
        batch, sizes = {}, []
        for name in self._views:
            tensors = [pb_utils.get_input_tensor_by_name(request, name) for request in requests]
            batch[name] = self._engine.device.join(tensors)
            sizes = [tensor.shape()[0] for tensor in tensors]
        expression = self._engine.run(batch)
        self._runs.increment(1)
        return np.split(expression, np.cumsum(sizes)[:-1])
