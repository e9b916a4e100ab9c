"""What a slide is: SLIDE, optional PITCH_UM and MPP → INFO (JSON), CENTER and SPOT_NAME of a grid, THUMBNAIL.

With the request parameter ``fingerprint``, INFO holds that alone and the rest is empty.
"""

import json

import m2ost_contract as contract
import numpy as np
import triton_python_backend_utils as pb_utils
from m2ost_preprocess.errors import PreprocessError
from m2ost_preprocess.slides import SlideRoots
from m2ost_serving import triton
from m2ost_serving.describing import BUDGET_S, Describing, Description
from m2ost_serving.queueing import QueueFull


class TritonPythonModel:
    """Takes requests as they come, each for one slide; they are answered later, by other threads."""

    def initialize(self, args):
        triton.check_environment()
        self._describing = Describing(SlideRoots.from_environment())

    def execute(self, requests):
        for request in requests:
            slide = triton.text(pb_utils.get_input_tensor_by_name(request, contract.SLIDE).as_numpy().reshape(-1)[0])
            reply = _Reply(request, slide)
            try:
                asked = triton.read_request(request)
                self._describing.put(
                    Description(
                        reply,
                        self._describing.locate(slide),
                        fingerprint=asked.fingerprint,
                        pitch_um=_number(request, "PITCH_UM"),
                        mpp=_number(request, "MPP"),
                        background=asked.background,
                        sender=asked.sender,
                        budget_s=asked.budget_s(BUDGET_S),
                    )
                )
            except (PreprocessError, QueueFull) as error:
                reply.error(error)

    def finalize(self):
        self._describing.close()


class _Reply:
    """The way back to a request's client."""

    def __init__(self, request, slide):
        self._sender, self._id, self._slide = request.get_response_sender(), triton.request_id(request), slide

    def is_cancelled(self):
        return self._sender.is_cancelled()

    def answer(self, found):
        if isinstance(found, str):
            self._send(_response({"fingerprint": found}))
        else:
            self._send(_response(found.facts(), found.centers, found.names, found.thumbnail))
        self._log("slide_fingerprint" if isinstance(found, str) else "slide_info", pb_utils.Logger.log_info)

    def error(self, error):
        answer = triton.triton_error(pb_utils, error)
        self._send(pb_utils.InferenceResponse(error=answer))
        self._log("slide_refused", pb_utils.Logger.log_warn, error=answer.message())

    def _send(self, response):
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _log(self, event, level, **facts):
        slide = self._slide[: contract.MAX_SHOWN_NAME]
        level(triton.log_line(event, request_id=self._id, slide=slide, **facts))


def _response(facts, centers=(), names=(), thumbnail=None):
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
