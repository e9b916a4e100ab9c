"""The stage for slides in Triton's Python backend: FEATURES and POSITION of a whole slide → EXPRESSION."""

from pathlib import Path

import m2ost_contract as contract
import numpy as np
import triton_python_backend_utils as pb_utils
from m2ost_serving import triton
from m2ost_serving.engine import CpuThreads
from m2ost_serving.engine.sequence import SequenceEngine


class TritonPythonModel:
    """Scores one slide at a time."""

    def initialize(self, args):
        triton.check_environment()
        release = triton.release_of(Path(args["model_repository"]))
        threads = CpuThreads.from_parameters(triton.parameters(args["model_config"]))
        self._engine = SequenceEngine(release, threads)
        pb_utils.Logger.log_info(triton.log_line("sequence_loaded", runs_on=self._engine.description))

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        if request.is_cancelled():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED))
        try:
            given = (pb_utils.get_input_tensor_by_name(request, n) for n in (contract.FEATURES, contract.POSITION))
            expression = self._engine.run(*(np.from_dlpack(tensor) for tensor in given))
        except Exception as error:  # its own: the others of the execution are served
            return pb_utils.InferenceResponse(error=triton.triton_error(pb_utils, error))
        return pb_utils.InferenceResponse([pb_utils.Tensor(contract.EXPRESSION, expression)])
