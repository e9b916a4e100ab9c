"""A slide as a whole: SLIDE, CENTER, POSITION, SCALE → EXPRESSION, STATUS, by the two stages of its network."""

import time
from functools import partial

import m2ost_contract as contract
import numpy as np
import triton_python_backend_utils as pb_utils
from m2ost_preprocess.slides import SlideRoots
from m2ost_serving import triton, whole_slides
from m2ost_serving.metrics import Refusals


class TritonPythonModel:
    """Takes requests as they come, or refuses them; what it has taken is answered later, by other threads."""

    def initialize(self, args):
        triton.check_environment()
        settings = triton.parameters(args["model_config"])
        info = contract.EngineInfo.from_parameters(settings)
        self._release, self._genes = info.release_sha256, len(info.genes)
        self._refusals = Refusals(triton.metrics(pb_utils, args["model_name"]))
        rows = partial(contract.number_of_rows, settings)
        self._slides = whole_slides.WholeSlides(
            SlideRoots.from_environment(),
            info,
            _Stages(settings[whole_slides.SPOTS_MODEL], settings[whole_slides.SEQUENCE_MODEL]),
            part_rows=rows(whole_slides.PART_ROWS, 64),
            parts_in_flight=rows(whole_slides.PARTS_IN_FLIGHT, 4),
            slides_at_once=rows(whole_slides.SLIDES_AT_ONCE, 4),
        )

    def execute(self, requests):
        for request in requests:
            reply = _Reply(request, self._refusals)
            try:
                names = (contract.SLIDE, contract.CENTER, contract.POSITION, contract.SCALE)
                slide, centers, positions, scale = (
                    pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names
                )
                reply.slide = triton.text(slide.reshape(-1)[0])
                asked = triton.read_request(request)
                if triton.is_probe(asked, reply.slide):
                    reply.probed(len(centers), self._genes)
                    continue
                triton.check_release(asked, self._release)
                self._slides.put(
                    whole_slides.WholeSlide(reply, reply.slide, centers, positions, float(scale.reshape(-1)[0]), asked)
                )
            except Exception as error:  # its own: the others are served
                reply.error(error)

    def finalize(self):
        self._slides.close()


class _Stages:
    """The two stages, as models of the same server."""

    def __init__(self, spots, sequence):
        self._spots, self._sequence = spots, sequence

    def features(self, slide, centers, scale, asked, request_id, timeout_s):
        rows = len(centers)
        inputs = [
            pb_utils.Tensor(contract.SLIDE, np.full((rows, 1), slide.encode(), object)),
            pb_utils.Tensor(contract.CENTER, centers),
            pb_utils.Tensor(contract.SCALE, np.full((rows, 1), scale, np.float32)),
        ]
        wanted = [contract.FEATURES, contract.STATUS]
        return _ask(self._spots, inputs, wanted, asked, request_id, timeout_s)

    def expression(self, features, positions, asked, request_id, timeout_s):
        inputs = [pb_utils.Tensor(contract.FEATURES, features), pb_utils.Tensor(contract.POSITION, positions)]
        return _ask(self._sequence, inputs, [contract.EXPRESSION], asked, request_id, timeout_s)[0]


def _ask(model, inputs, wanted, asked, request_id, timeout_s):
    request = pb_utils.InferenceRequest(
        model_name=model,
        inputs=inputs,
        requested_output_names=wanted,
        request_id=request_id,
        timeout=int(timeout_s * 1e6),
        parameters=asked.to_parameters(),
    )
    response = request.exec()
    if response.has_error():
        raise whole_slides.StageError(response.error().message())
    outputs = (pb_utils.get_output_tensor_by_name(response, name) for name in wanted)
    return [np.array(output.as_numpy()) for output in outputs]  # copies: the response's memory goes with it


def _tensors(expression, statuses):
    return [
        pb_utils.Tensor(contract.EXPRESSION, expression),
        pb_utils.Tensor(contract.STATUS, statuses.reshape(-1, 1)),
    ]


class _Reply(triton.Reply):
    """The way back to a request's client."""

    slide = ""

    def __init__(self, request, refusals):
        super().__init__(pb_utils, request, refusals)
        self._id, self._began = triton.request_id(request), time.monotonic()

    def probed(self, rows, genes):
        statuses = np.full(rows, contract.RowStatus.SLIDE_UNAVAILABLE, np.int32)
        return self.answer(lambda: _tensors(np.full((rows, genes), np.nan, np.float32), statuses))

    def scored(self, expression, statuses, facts):
        given = self.answer(lambda: _tensors(expression, statuses))
        if given:
            bad = facts["rows_without_value"]
            self._log("slide_scored", pb_utils.Logger.log_warn if bad else pb_utils.Logger.log_info, **facts)
        return given

    def error(self, error):
        given = super().error(error)
        if given:
            self._log("slide_refused", pb_utils.Logger.log_warn, error=str(error))
        return given

    def _log(self, event, level, **facts):
        took_s = round(time.monotonic() - self._began, 4)
        shown = self.slide[: contract.MAX_SHOWN_NAME]
        level(triton.log_line(event, request_id=self._id, slide=shown, **facts, took_s=took_s))
