"""The engine in Triton's Python backend: VIEW0 … → EXPRESSION, or FEATURES of a slide-level network.

The config's parameter ``engine`` says which.
"""

from functools import partial
from pathlib import Path

import triton_python_backend_utils as pb_utils
from m2ost_contract import (
    ENGINE_PARAMETER,
    ENGINE_RUNS_METRIC,
    ENGINE_WAITING_METRIC,
    WAITING_ROWS,
    WAITING_ROWS_PARAMETER,
    EngineInfo,
    number_of_rows,
)
from m2ost_serving import scoring, triton
from m2ost_serving.engine import CpuThreads, load_engine
from m2ost_serving.metrics import Refusals


class TritonPythonModel:
    """Takes requests as they come, or refuses them; what it has taken is answered later, by another thread."""

    def initialize(self, args):
        triton.check_environment()
        parameters = triton.parameters(args["model_config"])
        release = triton.release_of(Path(args["model_repository"]))
        if EngineInfo.from_parameters(parameters) != release.engine:
            raise ValueError(f"{release.folder}: the config is of another release than the manifest; export it anew")
        choice, gpu = parameters.get(ENGINE_PARAMETER), int(args["model_instance_device_id"])
        engine = load_engine(release, choice, gpu, threads=CpuThreads.from_parameters(parameters))
        pb_utils.Logger.log_info(triton.log_line("engine_loaded", engine=choice, runs_on=engine.description))
        self._release = release.engine.release_sha256
        self._views, self._gives = release.engine.views.names, release.engine.gives[0]
        metrics, rows = triton.metrics(pb_utils, args["model_name"]), partial(number_of_rows, parameters)
        self._refusals = Refusals(metrics)
        told = (
            (ENGINE_RUNS_METRIC, "runs of the engine"),
            ("m2ost_engine_rows_total", "rows that the engine was run on"),
            ("m2ost_engine_busy_seconds_total", "seconds that runs of the engine took, of each run for itself"),
        )
        self._run, self._rows, self._busy_s = (metrics.counter(*metric) for metric in told)
        self._runs_at_once = metrics.sum("m2ost_engine_runs_at_once", "runs of the engine that there may be at a time")
        self._runs_at_once(engine.runs)
        self._scoring = scoring.Scoring(
            engine,
            batch_rows=rows(scoring.BATCH_ROWS_PARAMETER, scoring.BATCH_ROWS),
            waiting_rows=rows(WAITING_ROWS_PARAMETER, WAITING_ROWS),
            tell_run=self._tell_run,
            tell_waiting=metrics.gauge(ENGINE_WAITING_METRIC, "rows that wait for the engine"),
        )

    def _tell_run(self, rows, busy_s):
        self._run(1)
        self._rows(rows)
        self._busy_s(busy_s)

    def execute(self, requests):
        for request in requests:
            reply = _Reply(request, self._refusals, self._gives)
            try:
                asked = triton.read_request(request)
                triton.check_release(asked, self._release)
                views = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self._views}
                rows = views[self._views[0]].shape()[0]
                self._scoring.put(reply, views, rows, background=asked.background, sender=asked.sender)
            except Exception as error:  # its own: the others of the batch are served
                reply.error(error)

    def finalize(self):
        self._scoring.close()


class _Reply(triton.Reply):
    """The way back to a request's client."""

    def __init__(self, request, refusals, gives):
        super().__init__(pb_utils, request, refusals)
        self._gives = gives

    def expression(self, expression):
        return self.answer(lambda: [pb_utils.Tensor(self._gives, expression)])
