"""iStar from a slide to its spots: SLIDE, CENTER, SPOT_DIAMETER_UM, optional MPP → EXPRESSION, STATUS, INFO.

Pixels are read by a decoder process of its own; the networks are asked through Triton, so that the patches of
concurrent requests are batched together.
"""

import triton_python_backend_utils as pb_utils
from m2ost_istar.serving import SlideModel


class TritonPythonModel:
    """Answers for one slide a request."""

    def initialize(self, args):
        self._model = SlideModel(pb_utils, args)

    def execute(self, requests):
        return [self._model.answer(request) for request in requests]

    def finalize(self):
        self._model.close()
