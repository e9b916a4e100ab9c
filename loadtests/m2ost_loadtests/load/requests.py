"""Requests to the models that a client asks: the tensors, the message that carries them, what an answer must hold.

The messages are Triton's own protocol buffers, so that the size of one is exactly what a client sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import m2ost_contract as contract
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

MODEL_ISTAR = "istar_slide"
MODELS = (contract.MODEL_SLIDE, contract.MODEL_PATCHES, MODEL_ISTAR)
"""Those that a load can ask."""

Tensors = Mapping[str, np.ndarray[Any, Any]]


def slide_tensors(slide: str, centers: Any, *, scale: float = 1.0) -> Tensors:
    """Inputs of ``m2ost_slide``.

    Parameters
    ----------
    slide : str
        ``root/relative/path``.
    centers : array_like, shape (n, 2)
        x, y in level-0 pixels; floored.
    scale : float
        Level-0 pixels per view pixel of the finest view.
    """
    positions = contract.as_centers(centers)
    n = len(positions)
    return {
        contract.SLIDE: np.full((n, 1), slide, dtype=object),
        contract.CENTER: positions,
        contract.SCALE: np.full((n, 1), scale, np.float32),
    }


def patches_tensors(views: Mapping[str, np.ndarray[Any, np.dtype[np.uint8]]]) -> Tensors:
    """Inputs of ``m2ost_patches``: VIEW0, VIEW1, … of uint8, each shape (n, size_px, size_px, 3)."""
    return dict(views)


def istar_tensors(slide: str, centers: Any, *, spot_diameter_um: float, mpp: float | None = None) -> Tensors:
    """Inputs of ``istar_slide``: one slide a request, no batch dimension.

    Parameters
    ----------
    slide, centers
        As in :func:`slide_tensors`.
    spot_diameter_um : float
        Diameter of the disk that a spot's value is the mean over, in µm.
    mpp : float, optional
        µm/px of the slide, in place of what the file says.
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {
        contract.SLIDE: np.array([slide], dtype=object),
        contract.CENTER: contract.as_centers(centers),
        "SPOT_DIAMETER_UM": np.array([spot_diameter_um], np.float64),
    }
    if mpp is not None:
        tensors["MPP"] = np.array([mpp], np.float64)
    return tensors


def infer_request(
    model: str,
    tensors: Tensors,
    *,
    request_id: str = "",
    priority: int = 0,
    parameters: Mapping[str, str] | None = None,
) -> Any:
    """The ``ModelInferRequest`` that carries ``tensors`` to a model.

    Parameters
    ----------
    model : str
        Name of the model.
    tensors : mapping of str to ndarray
    request_id : str
        Appears in the server's log.
    priority : int
        Triton's priority level, 1 the highest; 0 sends none.
    parameters : mapping of str to str, optional
        Further request parameters.
    """
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, array in tensors.items():
        request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        strings = array.dtype == np.object_
        request.raw_input_contents.append(serialize_byte_tensor(array).item() if strings else array.tobytes())
    if priority:
        request.parameters["priority"].uint64_param = priority
    for key, value in (parameters or {}).items():
        request.parameters[key].string_param = value
    return request


def output(response: Any, name: str) -> np.ndarray[Any, Any] | None:
    """A numeric output of a ``ModelInferResponse``, or None where it has none of that name."""
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.name == name:
            return np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).reshape(tuple(tensor.shape))
    return None


@dataclass(frozen=True)
class Answer:
    """What an answer holds.

    Parameters
    ----------
    spots : int
        Rows with a value.
    without_value : dict of str to int
        Rows without one, by the name of their status.
    """

    spots: int
    without_value: Mapping[str, int]


class BadAnswer(Exception):
    """An answer that breaks the contract: a wrong shape, or a value that is not finite under status OK."""


def read_answer(response: Any, rows: int) -> Answer:
    """Check an answer of any of ``MODELS``.

    Parameters
    ----------
    response : ModelInferResponse
    rows : int
        Spots that were asked for.

    Raises
    ------
    BadAnswer
        If the expression has another number of rows, or a row with status OK (or of a model without statuses) holds
        a value that is not finite.
    """
    expression, status = output(response, contract.EXPRESSION), output(response, contract.STATUS)
    if expression is None or expression.ndim != 2 or len(expression) != rows:
        shape = None if expression is None else expression.shape
        raise BadAnswer(f"EXPRESSION has shape {shape} for {rows} spots")
    statuses = np.zeros(rows, np.int32) if status is None else status.reshape(-1)
    if len(statuses) != rows:
        raise BadAnswer(f"STATUS has shape {statuses.shape} for {rows} spots")
    scored = statuses == contract.RowStatus.OK
    if not np.isfinite(expression[scored]).all():
        raise BadAnswer("EXPRESSION is not finite in a row with status OK")
    return Answer(int(scored.sum()), _by_name(statuses[~scored].tolist()))


def _by_name(statuses: Sequence[int]) -> dict[str, int]:
    known = {int(s): s.name for s in contract.RowStatus}
    names = [known.get(s, f"STATUS_{s}") for s in statuses]
    return {name: names.count(name) for name in dict.fromkeys(names)}
