"""What a slide is: SLIDE, optional PITCH_UM and MPP → INFO (JSON), CENTER and SPOT_NAME of a grid, THUMBNAIL.

With the request parameter ``fingerprint``, INFO holds that alone and the rest is empty.
"""

import json
import os

import m2ost_contract as contract
import numpy as np
import triton_python_backend_utils as pb_utils
from m2ost_preprocess.slides import SlideRoots
from m2ost_serving import triton
from m2ost_serving.describing import BUDGET_S, Describing, Description
from m2ost_serving.metrics import Refusals


class TritonPythonModel:
    """Takes requests as they come, each for one slide; they are answered later, by other threads."""

    def initialize(self, args):
        triton.check_environment()
        metrics = triton.metrics(pb_utils, args["model_name"])
        self._refusals = Refusals(metrics)
        self._describing = Describing(
            SlideRoots.from_environment(),
            tell_waiting=metrics.gauge("m2ost_info_waiting_requests", "requests that wait for slide_info"),
        )
        # The supervisor's own count: every server has this model, and the number changes as one is started alone.
        of_server = triton.metrics(pb_utils, "")
        restarts = of_server.counter("m2ost_server_restarts_total", "times that the server was replaced so far")
        restarts(int(os.environ.get(contract.ENV_RESTARTS, "0")))
        self._kept = metrics, of_server

    def execute(self, requests):
        for request in requests:
            reply = _Reply(request, self._refusals)
            try:
                slide = triton.text(
                    pb_utils.get_input_tensor_by_name(request, contract.SLIDE).as_numpy().reshape(-1)[0]
                )
                reply.slide = slide[: contract.MAX_SHOWN_NAME]
                asked = triton.read_request(request)
                if triton.is_probe(asked, slide):
                    reply.answer(lambda: _tensors({}))
                    continue
                self._describing.put(
                    Description(
                        reply,
                        self._describing.locate(slide),
                        fingerprint=asked.fingerprint,
                        pitch_um=_input(request, "PITCH_UM"),
                        mpp=_input(request, "MPP"),
                        background=asked.background,
                        sender=asked.sender,
                        budget_s=asked.budget_s(BUDGET_S),
                    )
                )
            except Exception as error:  # its own: the others of the batch are served
                reply.error(error)

    def finalize(self):
        self._describing.close()


class _Reply(triton.Reply):
    """The way back to a request's client."""

    slide = ""

    def __init__(self, request, refusals):
        super().__init__(pb_utils, request, refusals)
        self._id = triton.request_id(request)

    def found(self, found):
        alone = isinstance(found, str)
        given = self.answer(lambda: _tensors({"fingerprint": found}) if alone else _described(found))
        if given:
            self._log("slide_fingerprint" if alone else "slide_info", pb_utils.Logger.log_info)
        return given

    def error(self, error):
        given = super().error(error)
        if given:
            self._log("slide_refused", pb_utils.Logger.log_warn, error=str(error))
        return given

    def _log(self, event, level, **facts):
        level(triton.log_line(event, request_id=self._id, slide=self.slide, **facts))


def _described(found):
    return _tensors(found.facts(), found.centers, found.names, found.thumbnail)


def _tensors(facts, centers=(), names=(), thumbnail=None):
    thumbnail = np.zeros((0, 0, 3), np.uint8) if thumbnail is None else np.ascontiguousarray(thumbnail)
    return [
        pb_utils.Tensor("INFO", np.array([json.dumps(facts)], dtype=object)),
        pb_utils.Tensor(contract.CENTER, contract.as_centers(centers)),
        pb_utils.Tensor("SPOT_NAME", np.array(names, dtype=object)),
        pb_utils.Tensor("THUMBNAIL", thumbnail),
    ]


def _input(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)[0]
