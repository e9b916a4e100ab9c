"""Slides to views: SLIDE, CENTER, SCALE → VIEW0 …, STATUS. The pixels are read by a decoder process of its own."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils
from m2ost_preprocess import contract, serving
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.errors import PreprocessError, UnreadableSlide
from m2ost_preprocess.slides import SlideRoots
from m2ost_preprocess.views import TilingCounts

COUNTERS = {
    "spots": "spots whose views were cut",
    "regions": "regions read from slides",
    "decoded_px": "level-0 pixels read",
}


class TritonPythonModel:
    """Cuts the views of all rows of an execution, slide by slide, so that requests on one slide share its regions."""

    def initialize(self, args):
        serving.check_environment()
        info = serving.engine_info(args["model_config"])
        self._geometry, self._release = info.views, info.release_sha256
        self._roots = SlideRoots.from_environment()
        self._decoder = Decoder(self._geometry)
        self._decoder.start()
        self._families, self._counters = [], {}
        for name, description in COUNTERS.items():
            family = pb_utils.MetricFamily(
                name=f"m2ost_tiler_{name}_total", description=description, kind=pb_utils.MetricFamily.COUNTER
            )
            self._families.append(family)
            self._counters[name] = family.Metric(labels={"model": args["model_name"]})

    def execute(self, requests):
        started = time.monotonic()
        slides = [[serving.text(v) for v in _array(r, contract.SLIDE).reshape(-1)] for r in requests]
        centers = np.concatenate([_array(r, contract.CENTER) for r in requests])
        scales = np.concatenate([_array(r, contract.SCALE).reshape(-1) for r in requests])
        names = np.array([name for request in slides for name in request], dtype=object)
        views = [np.zeros((len(names), *self._geometry.shape), np.uint8) for _ in self._geometry.names]
        statuses = np.empty((len(names), 1), np.int32)
        counts, errors = TilingCounts(), {}
        for slide in dict.fromkeys(names):
            rows = np.flatnonzero(names == slide)
            try:
                path = self._roots.resolve(slide)
                statuses[rows, 0] = self._decoder.cut_views(
                    path, centers[rows], scales[rows], views, rows=rows, counts=counts
                )
            except PreprocessError as error:
                errors[slide] = error
            except Exception as error:  # one slide's surprise must not fail the requests of others
                errors[slide] = UnreadableSlide(slide, f"unexpected {type(error).__name__}: {error}")
            if slide in errors:
                statuses[rows, 0] = contract.RowStatus.SLIDE_UNAVAILABLE
        for name, counter in self._counters.items():
            counter.increment(getattr(counts, name))
        seconds = time.monotonic() - started
        responses, first = [], 0
        for request, request_slides in zip(requests, slides, strict=True):
            rows = slice(first, first + len(request_slides))
            first = rows.stop
            refusal = serving.wrong_release(pb_utils, request, self._release)
            responses.append(refusal or self._respond(request_slides, errors, views, statuses, rows))
            self._log(request, request_slides, statuses[rows], errors, seconds)
        return responses

    def _respond(self, slides, errors, views, statuses, rows):
        if all(slide in errors for slide in slides):
            return pb_utils.InferenceResponse(error=serving.triton_error(pb_utils, errors[slides[0]]))
        tensors = [pb_utils.Tensor(n, v[rows]) for n, v in zip(self._geometry.names, views, strict=True)]
        return pb_utils.InferenceResponse([*tensors, pb_utils.Tensor(contract.STATUS, statuses[rows])])

    def _log(self, request, slides, statuses, errors, seconds):
        failed = int(np.count_nonzero(statuses))
        line = serving.log_line(
            "tiled",
            request_id=request.request_id(),
            slides=sorted(set(slides)),
            rows=len(slides),
            rows_without_value=failed,
            errors=[str(errors[s]) for s in sorted(set(slides)) if s in errors],
            execution_s=round(seconds, 4),
        )
        (pb_utils.Logger.log_warn if failed else pb_utils.Logger.log_info)(line)

    def finalize(self):
        self._decoder.close()


def _array(request, name):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()
