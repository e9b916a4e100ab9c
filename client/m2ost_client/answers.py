"""What a server answered, looked at before anybody believes it.

A server may be another program, an older one, or broken. An answer of the wrong shape would be broadcast into a table,
one of the wrong numbers written to it.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from m2ost_preprocess import contract
from m2ost_preprocess.contract import EngineInfo, RowStatus
from m2ost_preprocess.decoder import SlideInfo

from .errors import BadAnswer

Expression = np.ndarray[Any, np.dtype[np.float32]]
Statuses = np.ndarray[Any, np.dtype[np.int32]]

_WORDS = ("vendor", "reader", "reader_reason", "note")


def read_expression(answer: Any, rows: int, engine: EngineInfo) -> Expression:
    """The expression of spots whose views were sent.

    Parameters
    ----------
    answer : InferResult
        Of tritonclient's.
    rows : int
        Spots that were sent.
    engine : EngineInfo
        What is served.

    Returns
    -------
    ndarray of float32, shape (rows, G)

    Raises
    ------
    BadAnswer
        If it is not that, or not finite.
    """
    expression: Expression = _tensor(answer, contract.EXPRESSION, np.float32, (rows, len(engine.genes)))
    if not np.isfinite(expression).all():
        raise BadAnswer(f"{contract.EXPRESSION} holds values that are not finite")
    return expression


def read_scored(answer: Any, rows: int, engine: EngineInfo) -> tuple[Expression, Statuses]:
    """Expression and status of spots of a slide.

    Parameters
    ----------
    answer : InferResult
        Of tritonclient's.
    rows : int
        Spots that were asked for.
    engine : EngineInfo
        What is served.

    Returns
    -------
    ndarray of float32, shape (rows, G)
        NaN where the status is not OK.
    ndarray of int32, shape (rows,)

    Raises
    ------
    BadAnswer
        If it is not that, a value is not finite though its status is OK, or there is one though its status is not.
        A newer server may know further statuses.
    """
    expression = _tensor(answer, contract.EXPRESSION, np.float32, (rows, len(engine.genes)))
    status = _tensor(answer, contract.STATUS, np.int32, (rows, 1)).reshape(-1)
    ok = status == RowStatus.OK
    if not np.isfinite(expression[ok]).all():
        raise BadAnswer(f"{contract.EXPRESSION} holds values that are not finite, of spots whose status is OK")
    if not np.isnan(expression[~ok]).all():
        raise BadAnswer(f"{contract.EXPRESSION} holds values of spots whose status is not OK")
    return expression, status


def read_fingerprint(answer: Any) -> str:
    """The fingerprint in an answer of ``slide_info``: alone, or among the facts of a server that tells only all.

    Raises
    ------
    BadAnswer
        If there is none.
    """
    return _fingerprint(_facts(answer))


def read_slide_info(answer: Any) -> SlideInfo:
    """The answer of ``slide_info``; a newer server's further facts are left out.

    Raises
    ------
    BadAnswer
        If a fact is missing, or is none.
    """
    told = _facts(answer)
    arrays = ("centers", "names", "thumbnail")
    missing = [name for name in SlideInfo.__dataclass_fields__ if name not in told and name not in arrays]
    if missing:
        raise BadAnswer(f"INFO says nothing of {', '.join(missing)}")
    facts = {name: told[name] for name in SlideInfo.__dataclass_fields__ if name not in arrays}
    size, mpp = facts["size"], facts["mpp"]
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise BadAnswer(f"INFO says that the slide's size is {size!r}")
    if mpp is not None and not _is_number(mpp, least=0):
        raise BadAnswer(f"INFO says {mpp!r} µm/px")
    if not all(isinstance(facts[name], str) for name in _WORDS):
        raise BadAnswer("INFO says something other than words of the slide's format")
    for name in ("tissue_fraction", "pitch_px"):
        if not _is_number(facts[name], least=-1):
            raise BadAnswer(f"INFO says {name} {facts[name]!r}")
    facts["size"], facts["fingerprint"] = tuple(size), _fingerprint(told)
    centers = _tensor(answer, contract.CENTER, np.int32, (None, 2))
    names = _tensor(answer, "SPOT_NAME", np.object_, (len(centers),))
    thumbnail = _tensor(answer, "THUMBNAIL", np.uint8, (None, None, 3))
    try:
        spots = tuple(name.decode() for name in names)
    except (AttributeError, UnicodeDecodeError) as error:
        raise BadAnswer("a name in SPOT_NAME is not UTF-8") from error
    if len(set(spots)) < len(spots):
        raise BadAnswer("two spots share a name in SPOT_NAME")
    return SlideInfo(**facts, centers=centers.astype(np.float64), names=spots, thumbnail=thumbnail)


def _tensor(answer: Any, name: str, dtype: Any, shape: tuple[int | None, ...]) -> Any:
    """An output of this type and shape, of which None is any length."""
    try:
        array = answer.as_numpy(name)
    except Exception as error:  # raw bytes that do not make what the answer says they are
        raise BadAnswer(f"{name} cannot be read: {error}") from error
    if array is None:
        raise BadAnswer(f"there is no {name} in it")
    expected = len(shape) == array.ndim and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not expected:
        shown = " × ".join("n" if n is None else str(n) for n in shape)
        raise BadAnswer(
            f"{name} is {array.dtype} of {' × '.join(map(str, array.shape))}, not {np.dtype(dtype)} of {shown}"
        )
    return array


def _facts(answer: Any) -> dict[str, Any]:
    info = _tensor(answer, "INFO", np.object_, (1,))
    try:
        facts = json.loads(info[0])
    except ValueError as error:
        raise BadAnswer(f"INFO is no JSON: {error}") from error
    if not isinstance(facts, dict):
        raise BadAnswer("INFO is no JSON object")
    return facts


def _fingerprint(facts: dict[str, Any]) -> str:
    found = facts.get("fingerprint")
    if not (isinstance(found, str) and found):
        raise BadAnswer(f"INFO says that the slide's fingerprint is {found!r}")
    return found


def _is_number(value: Any, *, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > least
