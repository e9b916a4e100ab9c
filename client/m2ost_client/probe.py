"""Is a server alive? Asked by real inferences: Triton's own readiness stays true when a Python model has died."""

from __future__ import annotations

import urllib.request
from enum import Enum
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from m2ost_preprocess import contract
from m2ost_preprocess.contract import EngineInfo
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

PROBE_TIMEOUT_S = 5.0
PROBE_REQUEST_ID = "m2ost-probe"
PROBE_SLIDE = "m2ost-probe"
"""No slide name can be this: the tiler refuses it at once, in words that prove that it is alive."""


class Health(Enum):
    """What a probe found."""

    READY = "answers real inferences"
    NO_ANSWER = "does not answer yet, or is too busy to"
    DEAD_STUB = "the process of a Python model has died"


def is_dead_stub(message: str) -> bool:
    """Whether an error of Triton's says that a Python model's process is gone for good."""
    return "tub process" in message and "healthy" in message


def tensor(name: str, array: np.ndarray[Any, Any]) -> Any:
    """An input of tritonclient's, holding ``array``."""
    value = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    value.set_data_from_numpy(array)
    return value


def executions_so_far(metrics_url: str) -> float:
    """Model executions since the server started, by its own metrics; -1 where it does not answer."""
    try:
        with urllib.request.urlopen(metrics_url, timeout=PROBE_TIMEOUT_S) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return -1.0
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("nv_inference_exec_count{"))


def probe(address: str, engine: EngineInfo) -> Health:
    """Score one black spot, guard one row, and ask tiler and slide information for a slide that cannot exist.

    Parameters
    ----------
    address : str
        ``host:port`` of the gRPC service.
    engine : EngineInfo
        What is served.
    """
    black = [tensor(name, np.zeros((1, *engine.views.shape), np.uint8)) for name in engine.views.names]
    slide = np.array([[PROBE_SLIDE]], dtype=object)
    row = [
        tensor(contract.SLIDE, slide),
        tensor(contract.CENTER, np.zeros((1, 2), np.int32)),
        tensor(contract.SCALE, np.ones((1, 1), np.float32)),
    ]
    value = [
        tensor(contract.EXPRESSION, np.zeros((1, len(engine.genes)), np.float32)),
        tensor(contract.STATUS, np.zeros((1, 1), np.int32)),
    ]
    requests = [
        (contract.MODEL_PATCHES, black),
        (contract.MODEL_GUARD, value),
        (contract.MODEL_SLIDE, row),
        (contract.MODEL_INFO, [tensor(contract.SLIDE, slide[0])]),
    ]
    with triton.InferenceServerClient(address) as client:
        for model, inputs in requests:
            try:
                client.infer(model, inputs, request_id=PROBE_REQUEST_ID, client_timeout=PROBE_TIMEOUT_S)
            except InferenceServerException as error:
                message = str(error.message())
                if is_dead_stub(message):
                    return Health.DEAD_STUB
                if PROBE_SLIDE not in message:
                    return Health.NO_ANSWER
    return Health.READY
