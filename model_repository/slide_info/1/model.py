"""What a slide is: SLIDE, optional PITCH_UM and MPP → INFO (JSON), CENTER and SPOT_NAME of a grid, THUMBNAIL.

With the request parameter ``fingerprint``, INFO holds that alone and the rest is empty.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils
from m2ost_preprocess import contract, serving
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.errors import answered
from m2ost_preprocess.slides import SlideRoots, fingerprint


class TritonPythonModel:
    """Answers for one slide a request."""

    def initialize(self, args):
        serving.check_environment()
        self._roots = SlideRoots.from_environment()
        self._decoder = Decoder(threads=0)  # it cuts nothing, and keeps no tiles to read along
        self._decoder.start()

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        if request.is_cancelled():  # its client is gone: others wait for what it would cost
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED))
        slide = serving.text(pb_utils.get_input_tensor_by_name(request, contract.SLIDE).as_numpy().reshape(-1)[0])
        try:
            if serving.read_request(request).fingerprint:
                return _response({"fingerprint": fingerprint(self._roots.resolve(slide))}, slide, request)
            info = self._decoder.describe(
                self._roots.resolve(slide), pitch_um=_number(request, "PITCH_UM"), mpp=_number(request, "MPP")
            )
        except Exception as surprise:
            error = answered(slide, surprise)
            pb_utils.Logger.log_warn(
                serving.log_line("slide_refused", request_id=serving.request_id(request), slide=slide, error=str(error))
            )
            return pb_utils.InferenceResponse(error=serving.triton_error(pb_utils, error))
        return _response(info.facts(), slide, request, info.centers, info.names, info.thumbnail)

    def finalize(self):
        self._decoder.close()


def _response(facts, slide, request, centers=(), names=(), thumbnail=None):
    event = "slide_info" if thumbnail is not None else "slide_fingerprint"
    pb_utils.Logger.log_info(serving.log_line(event, request_id=serving.request_id(request), slide=slide))
    thumbnail = np.zeros((0, 0, 3), np.uint8) if thumbnail is None else np.ascontiguousarray(thumbnail)
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("INFO", np.array([json.dumps(facts)], dtype=object)),
            pb_utils.Tensor(contract.CENTER, contract.as_centers(centers)),
            pb_utils.Tensor("SPOT_NAME", np.array(names, dtype=object)),
            pb_utils.Tensor("THUMBNAIL", thumbnail),
        ]
    )


def _number(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else float(tensor.as_numpy().reshape(-1)[0])
