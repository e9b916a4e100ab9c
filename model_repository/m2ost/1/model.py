"""The engine in Triton's Python backend: VIEW0 … → EXPRESSION. The config's parameter ``engine`` says which."""

from functools import partial
from pathlib import Path

import triton_python_backend_utils as pb_utils
from m2ost_contract import (
    ENGINE_PARAMETER,
    ENGINE_RUNS_METRIC,
    ENGINE_WAITING_METRIC,
    EXPRESSION,
    WAITING_ROWS,
    WAITING_ROWS_PARAMETER,
    EngineInfo,
    Release,
    number_of_rows,
)
from m2ost_preprocess.errors import PreprocessError
from m2ost_serving import scoring, triton
from m2ost_serving.engine import CpuThreads, load_engine
from m2ost_serving.queueing import QueueFull


class TritonPythonModel:
    """Takes requests as they come, or refuses them; what it has taken is answered later, by another thread."""

    def initialize(self, args):
        triton.check_environment()
        parameters = triton.parameters(args["model_config"])
        release = Release.open(Path(args["model_repository"]).parent)
        if EngineInfo.from_parameters(parameters) != release.engine:
            raise ValueError(f"{release.folder}: the config is of another release than the manifest; export it anew")
        choice, gpu = parameters.get(ENGINE_PARAMETER), int(args["model_instance_device_id"])
        engine = load_engine(release, choice, gpu, threads=CpuThreads.from_parameters(parameters))
        pb_utils.Logger.log_info(triton.log_line("engine_loaded", engine=choice, runs_on=engine.description))
        self._views, self._families = release.engine.views.names, []
        kinds = pb_utils.MetricFamily
        runs = self._metric(ENGINE_RUNS_METRIC, "runs of the engine", kinds.COUNTER, args)
        waiting = self._metric(ENGINE_WAITING_METRIC, "rows that wait for the engine", kinds.GAUGE, args)
        rows = partial(number_of_rows, parameters)
        self._scoring = scoring.Scoring(
            engine,
            batch_rows=rows(scoring.BATCH_ROWS_PARAMETER, scoring.BATCH_ROWS),
            waiting_rows=rows(WAITING_ROWS_PARAMETER, WAITING_ROWS),
            tell_run=partial(runs.increment, 1),
            tell_waiting=waiting.set,
            warn=lambda words: pb_utils.Logger.log_error(triton.log_line("scoring", error=words)),
        )

    def execute(self, requests):
        for request in requests:
            reply = _Reply(request)
            try:
                asked = triton.read_request(request)
                views = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self._views}
                rows = views[self._views[0]].shape()[0]
                self._scoring.put(reply, views, rows, background=asked.background, sender=asked.sender)
            except (PreprocessError, QueueFull) as error:  # its own: the others of the batch are served
                reply.error(error)

    def _metric(self, name, description, kind, args):
        self._families.append(pb_utils.MetricFamily(name=name, description=description, kind=kind))
        return self._families[-1].Metric(labels={"model": args["model_name"]})

    def finalize(self):
        self._scoring.close()


class _Reply:
    """The way back to a request's client."""

    def __init__(self, request):
        self._sender = request.get_response_sender()

    def is_cancelled(self):
        return self._sender.is_cancelled()

    def expression(self, expression):
        self._send(pb_utils.InferenceResponse([pb_utils.Tensor(EXPRESSION, expression)]))

    def error(self, error):
        self._send(pb_utils.InferenceResponse(error=triton.triton_error(pb_utils, error)))

    def _send(self, response):
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
