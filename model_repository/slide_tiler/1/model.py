"""Slides to views: SLIDE, CENTER, SCALE → VIEW0 …, STATUS. The pixels are read by a decoder process of its own.

The config's parameter ``cut`` says where views are cut. Those cut on a GPU stay there, and go on by DLPack.
"""

import time

import numpy as np
import triton_python_backend_utils as pb_utils
from m2ost_preprocess import contract, serving
from m2ost_preprocess.errors import PreprocessError, answered
from m2ost_preprocess.slides import SlideRoots
from m2ost_preprocess.tiler import make_tiler
from m2ost_preprocess.tiles import TilingCounts

COUNTERS = {
    "spots": "spots whose views were cut",
    "regions": "regions put together out of tiles",
    "decoded_tiles": "compressed tiles decoded",
    "decoded_px": "pixels of the tiles decoded",
    "cached_tiles": "tiles that were needed and found decoded",
    "moved_bytes": "bytes of pixels copied into regions and views",
}

QUEUES = (contract.MODEL_TILER, contract.MODEL_ENGINE)


class TritonPythonModel:
    """Cuts the views of all rows of an execution, slide by slide, so that requests on one slide share its regions."""

    def initialize(self, args):
        serving.check_environment()
        info = serving.engine_info(args["model_config"])
        self._geometry, self._release = info.views, info.release_sha256
        self._roots = SlideRoots.from_environment()
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        self._tiler = make_tiler(serving.parameters(args["model_config"]), self._geometry, gpu, _log_decoding)
        self._families, self._counters = [], {}
        for name, description in COUNTERS.items():
            family = pb_utils.MetricFamily(
                name=f"m2ost_tiler_{name}_total", description=description, kind=pb_utils.MetricFamily.COUNTER
            )
            self._families.append(family)
            self._counters[name] = family.Metric(labels={"model": args["model_name"]})

    def execute(self, requests):
        started = time.monotonic()
        waiting = _waiting_requests()
        understood = [self._understand(request, waiting) for request in requests]
        refusals = [refusal for _, refusal in understood]
        accepted = [(r, asked) for r, (asked, refusal) in zip(requests, understood, strict=True) if refusal is None]
        answers = iter(self._tile(accepted))
        responses = []
        for request, refusal in zip(requests, refusals, strict=True):
            if refusal is None:
                response, facts = next(answers)
                _log(request, "tiled", **facts, execution_s=round(time.monotonic() - started, 4))
            else:
                response = pb_utils.InferenceResponse(error=refusal)
                _log(request, "refused", errors=[refusal.message()])
            responses.append(response)
        return responses

    def _understand(self, request, waiting):
        """What a request says beside its tensors, and why it is refused: one of the two is None."""
        if request.is_cancelled():  # its client is gone: others wait for what it would cost
            return None, pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED)
        try:
            asked = serving.read_request(request)
        except PreprocessError as error:  # its own: the others of the batch are served
            return None, serving.triton_error(pb_utils, error)
        return asked, _overload(waiting) or serving.wrong_release(pb_utils, asked, self._release)

    def _tile(self, accepted):
        """(response, facts for the log) of each request."""
        if not accepted:
            return []
        requests = [request for request, _ in accepted]
        # What rows have in common: the slide, and whether its lower levels may serve.
        sources = [
            [(serving.text(v), asked.pyramid) for v in _array(request, contract.SLIDE).reshape(-1)]
            for request, asked in accepted
        ]
        centers = np.concatenate([_array(r, contract.CENTER) for r in requests])
        scales = np.concatenate([_array(r, contract.SCALE).reshape(-1) for r in requests])
        numbers = {source: i for i, source in enumerate(dict.fromkeys(s for request in sources for s in request))}
        number = np.array([numbers[source] for request in sources for source in request])
        views = self._tiler.buffers(len(number))
        statuses = np.empty((len(number), 1), np.int32)
        counts, errors = TilingCounts(), {}
        for source, i in numbers.items():
            slide, pyramid = source
            rows = np.flatnonzero(number == i)
            try:
                path = self._roots.resolve(slide)
                statuses[rows, 0] = self._tiler.cut_views(
                    path, centers[rows], scales[rows], views, rows, counts, pyramid=pyramid
                )
            except Exception as error:  # one slide's surprise must not fail the requests of others
                errors[source] = answered(slide, error)
            if source in errors:
                statuses[rows, 0] = contract.RowStatus.SLIDE_UNAVAILABLE
        for name, counter in self._counters.items():
            counter.increment(getattr(counts, name))
        answers, first = [], 0
        for request_sources in sources:
            rows = slice(first, first + len(request_sources))
            first = rows.stop
            response = self._respond(request_sources, errors, views, statuses, rows)
            known = sorted(set(request_sources))
            facts = {
                "slides": sorted({slide for slide, _ in known}),
                "rows": len(request_sources),
                "rows_without_value": int(np.count_nonzero(statuses[rows])),
                "errors": [str(errors[source]) for source in known if source in errors],
            }
            answers.append((response, facts))
        return answers

    def _respond(self, sources, errors, views, statuses, rows):
        if all(source in errors for source in sources):
            return pb_utils.InferenceResponse(error=serving.triton_error(pb_utils, errors[sources[0]]))
        tensors = [_tensor(n, v[rows]) for n, v in zip(self._geometry.names, views, strict=True)]
        return pb_utils.InferenceResponse([*tensors, pb_utils.Tensor(contract.STATUS, statuses[rows])])

    def finalize(self):
        self._tiler.close()


def _waiting_requests():
    try:
        return serving.waiting_requests(QUEUES)
    except OSError as error:
        pb_utils.Logger.log_warn(serving.log_line("backlog_unknown", error=str(error)))
        return 0


def _overload(waiting):
    """The refusal of a request while too many wait, or None; an object of its own, as a stub cannot send one twice."""
    if waiting <= serving.MAX_WAITING_REQUESTS:
        return None
    allowed = serving.MAX_WAITING_REQUESTS
    message = f"{waiting} requests wait for this server, {allowed} may; send this one again later"
    return pb_utils.TritonError(message, pb_utils.TritonError.UNAVAILABLE)


def _log(request, event, **facts):
    line = serving.log_line(event, request_id=serving.request_id(request), **facts)
    (pb_utils.Logger.log_warn if facts["errors"] or facts.get("rows_without_value") else pb_utils.Logger.log_info)(line)


def _log_decoding(path, decoding):
    line = serving.log_line("decoding_chosen", slide=path.name, **vars(decoding))
    pb_utils.Logger.log_info(line)


def _tensor(name, array):
    # from_dlpack of a NumPy array ends the stub.
    return pb_utils.Tensor(name, array) if isinstance(array, np.ndarray) else pb_utils.Tensor.from_dlpack(name, array)


def _array(request, name):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()
