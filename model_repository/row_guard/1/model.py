"""EXPRESSION of rows without views → NaN: an engine scores the black views of a failed row like any other."""

import numpy as np
import triton_python_backend_utils as pb_utils
from m2ost_contract import EXPRESSION, GUARDED_METRIC, STATUS
from m2ost_serving import triton


class TritonPythonModel:
    """Masks rows by their status."""

    def initialize(self, args):
        triton.check_environment()
        self._family = pb_utils.MetricFamily(
            name=GUARDED_METRIC,
            description="rows of slides that have passed the engine",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._rows = self._family.Metric(labels={"model": args["model_name"]})

    def execute(self, requests):
        responses = []
        for request in requests:
            expression = pb_utils.get_input_tensor_by_name(request, EXPRESSION).as_numpy()
            status = pb_utils.get_input_tensor_by_name(request, STATUS).as_numpy()
            guarded = np.where(status == 0, expression, np.float32(np.nan))
            self._rows.increment(int(np.count_nonzero(status == 0)))
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(EXPRESSION, guarded)]))
        return responses
