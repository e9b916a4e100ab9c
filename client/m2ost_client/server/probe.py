"""Is a server alive? Asked by real inferences: Triton's own readiness stays true when a Python model has died."""

from __future__ import annotations

import queue
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import m2ost_contract as contract
import numpy as np
import tritonclient.grpc as triton
from m2ost_contract import EngineInfo
from m2ost_preprocess.network import channel_options, read_url
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from ..answers import is_dead_stub
from ..credentials import ChannelAccess
from ..requests import info_inputs, sequence_inputs, spot_inputs, tensor, view_inputs, whole_slide_inputs
from .served_models import may_take_long

PROBE_TIMEOUT_S = 5.0
_EXECUTIONS = re.compile(r'^nv_inference_exec_count\{[^}]*\bmodel="([^"]*)"[^}]*\} ([0-9.e+]+)$', re.MULTILINE)

_RUNS = re.compile(rf'^{contract.ENGINE_RUNS_METRIC}\{{[^}}]*\bmodel="([^"]*)"[^}}]*\}} ([0-9.e+]+)$', re.MULTILINE)


@dataclass(frozen=True)
class Health:
    """What a probe found.

    Parameters
    ----------
    silent : tuple of str
        Models that do not answer yet, or are too busy to.
    dead : tuple of str
        Models whose process has died.
    words : str
        What was heard in place of the silent models' answers.
    overdue : tuple of str
        Silent models that ought to execute something now and then: those that no request may keep for any time.
    """

    silent: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    words: str = ""
    overdue: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether every model answers real inferences."""
        return not self.silent and not self.dead


def executions_so_far(metrics_url: str) -> dict[str, float]:
    """Executions by model since the server started, by its own metrics; empty where it does not answer."""
    try:
        text = read_url(metrics_url, PROBE_TIMEOUT_S)
    except OSError:
        return {}
    executions: dict[str, float] = {}
    for model, count in _EXECUTIONS.findall(text):
        executions[model] = executions.get(model, 0.0) + float(count)
    # Of an engine that takes requests as they come, Triton counts as executed what it has taken.
    return executions | {model: float(count) for model, count in _RUNS.findall(text)}


def probe(
    address: str,
    engines: Sequence[EngineInfo],
    beside: Mapping[str, Any] | None = None,
    *,
    access: ChannelAccess | None = None,
    request_id: str = f"{contract.PROBE_SENDER}-0",
    at_work: Collection[str] = (),
) -> Health:
    """Score one black spot, guard one row, and ask whoever takes a slide's name for one that cannot exist.

    All are asked at once, so that one that hangs hides none of the others. A release's models know the slide and answer
    without an error. A model that is served beside is asked for zeros and for the same slide, as its config wants them,
    and may refuse it: that it names it proves that it is alive.

    Parameters
    ----------
    address : str
        ``host:port`` of the gRPC service.
    engines : sequence of EngineInfo
        What is served.
    beside : mapping of str to ModelConfig, optional
        What is served beside it: see :func:`~m2ost_client.server.served_models.models_beside`.
    access : ChannelAccess, optional
        What the channel is opened with.
    request_id : str
        Of all its requests: begins with ``PROBE_SENDER`` and a hyphen. By the rest their sender knows them in the
        server's log.
    at_work : collection of str
        Models that are known to work. The engines among them are not asked, for that costs them a row.
    """
    beside = beside or {}
    requests = _requests_of_zeros(beside)
    for engine in engines:
        requests |= _engine_requests(engine)
    for name in {engine.names.engine for engine in engines}.intersection(at_work):
        del requests[name]
    answers: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    access = access or ChannelAccess()
    with triton.InferenceServerClient(
        address, creds=access.channel, channel_args=[*channel_options(address), *access.options]
    ) as client:
        access.admit(client)
        for model, (asked, inputs, outputs) in requests.items():
            client.async_infer(
                asked,
                inputs,
                partial(_hand_in, answers, model),
                outputs=[triton.InferRequestedOutput(name) for name in outputs] or None,
                request_id=request_id,
                client_timeout=PROBE_TIMEOUT_S,
            )
        words = dict(answers.get() for _ in requests)
    dead = tuple(model for model in requests if is_dead_stub(words[model]))
    silent = tuple(m for m in requests if words[m] and contract.PROBE_SLIDE not in words[m] and m not in dead)
    overdue = tuple(model for model in silent if model not in beside or not may_take_long(beside[model]))
    return Health(silent, dead, "; ".join(dict.fromkeys(words[model] for model in silent)), overdue)


Requests = dict[str, tuple[str, list[Any], tuple[str, ...]]]
"""The model whose process answers → the model that is asked, which is the engine's ensemble for the engine; its inputs;
the outputs that are wanted, where not all are."""


def _engine_requests(engine: EngineInfo) -> Requests:
    black = view_inputs(engine.views.names, [np.zeros((1, *engine.views.shape), np.uint8)] * engine.views.n_views)
    origin = np.zeros((1, 2), np.int32)
    row, (gives, values) = spot_inputs(contract.PROBE_SLIDE, origin, 1.0), engine.gives
    value = [
        tensor(gives, np.zeros((1, values), np.float32)),
        tensor(contract.STATUS, np.ones((1, 1), np.int32)),  # no row that was scored: the guard counts those
    ]
    names = engine.names
    asked: Requests = {
        names.engine: (names.patches, black, ()),
        names.guard: (names.guard, value, ()),
        names.tiler: (names.tiler, row, (contract.STATUS,)),
        contract.MODEL_INFO: (contract.MODEL_INFO, info_inputs(contract.PROBE_SLIDE), ()),
    }
    if engine.slide_level is not None:
        features = np.zeros((1, engine.slide_level.features), np.float32)
        asked |= {
            names.slide: (names.slide, whole_slide_inputs(contract.PROBE_SLIDE, origin, origin, 1.0), ()),
            names.sequence: (names.sequence, sequence_inputs(features, origin), ()),
        }
    return asked


def _requests_of_zeros(configs: Mapping[str, Any]) -> Requests:
    """One row of zeros for every input that must be given; for a slide's name, that of one that cannot exist."""
    return {
        model: (model, [_zeros(wanted, config.max_batch_size) for wanted in config.input if not wanted.optional], ())
        for model, config in configs.items()
    }


def _zeros(wanted: Any, max_batch_size: int) -> Any:
    shape = [*([1] if max_batch_size else []), *(max(1, dim) for dim in wanted.dims)]
    kind = model_config_pb2.DataType.Name(wanted.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
    text = contract.PROBE_SLIDE if wanted.name == contract.SLIDE else ""
    zeros = np.full(shape, text, object) if kind == "BYTES" else np.zeros(shape, triton_to_np_dtype(kind))
    value = triton.InferInput(wanted.name, shape, kind)
    value.set_data_from_numpy(zeros)
    return value


def _hand_in(
    answers: queue.SimpleQueue[tuple[str, str]], model: str, *, result: Any, error: InferenceServerException | None
) -> None:
    answers.put((model, "" if error is None else str(error.message())))
