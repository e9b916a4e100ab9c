"""The five MLPs on ONNX Runtime in Triton's Python backend: FEATURES → EXPRESSION."""

import triton_python_backend_utils as pb_utils
from m2ost_istar.serving import NetworkModel


class TritonPythonModel:
    """One session, run once for each execution of Triton's."""

    def initialize(self, args):
        self._model = NetworkModel(pb_utils, args, "head")

    def execute(self, requests):
        return self._model.execute(requests)
