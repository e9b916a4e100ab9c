"""What the engine gives of rows without views → NaN: it scores the black views of a failed row like any other."""

import numpy as np
import triton_python_backend_utils as pb_utils
from m2ost_contract import GUARDED_METRIC, STATUS
from m2ost_preprocess.errors import UnsupportedRequest
from m2ost_serving import backlog, triton
from m2ost_serving.metrics import Refusals


class TritonPythonModel:
    """Masks rows by their status."""

    def initialize(self, args):
        triton.check_environment()
        self._name = triton.given_name(args["model_config"])
        kinds = [{"background": kind} for kind in (backlog.OTHERS, backlog.BACKGROUND)]
        metrics = triton.metrics(pb_utils, args["model_name"])
        self._refusals = Refusals(metrics)
        self._rows = metrics.counters(GUARDED_METRIC, "rows of slides that have passed the engine", kinds)

    def execute(self, requests):
        responses = []
        for request in requests:
            try:
                asked = triton.read_request(request)
            except UnsupportedRequest as error:  # its own: the others of the batch are served
                self._refusals.request(error)
                responses.append(pb_utils.InferenceResponse(error=triton.triton_error(pb_utils, error)))
                continue
            values = pb_utils.get_input_tensor_by_name(request, self._name).as_numpy()
            status = pb_utils.get_input_tensor_by_name(request, STATUS).as_numpy()
            guarded = np.where(status == 0, values, np.float32(np.nan))
            self._rows[asked.background](int(np.count_nonzero(status == 0)))
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(self._name, guarded)]))
        return responses
