"""What a server answered, looked at before anybody believes it.

A server may be another program, an older one, or broken. An answer of the wrong shape would be broadcast into a table,
one of the wrong numbers written to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import m2ost_contract as contract
import numpy as np
from m2ost_contract import EngineInfo, RowStatus
from m2ost_preprocess.decoder import SlideInfo

from .errors import BadAnswer

Expression = np.ndarray[Any, np.dtype[np.float32]]
Statuses = np.ndarray[Any, np.dtype[np.int32]]

_WORDS = ("vendor", "reader", "reader_reason", "note")
_IDENTITIES = ("target", "precision", "checkpoint_sha256", "onnx_sha256", "release_sha256")

MOST_PX = 2**31 - 1
"""Longest side of a slide: positions are int32."""

_MOST = 1e300
"""Beyond every number that a slide has; an integer of JSON's may be too large for a float."""

MOST_VIEW_PX = 4096
"""Largest view: a client that sends pixels makes room for what it is told."""


def read_engine(parameters: Mapping[str, str], backend: str = "") -> EngineInfo:
    """What is served, by the config of the served engine.

    Parameters
    ----------
    parameters : mapping of str to str
        The config's string parameters.
    backend : str
        Triton's, which computes where the parameters name no engine.

    Raises
    ------
    BadAnswer
        If a parameter is missing, or says what cannot be of a release.
    """
    try:
        info = EngineInfo.from_parameters(parameters)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise BadAnswer(f"the served engine's config: {error}") from error
    if not all(info.genes) or len(set(info.genes)) < len(info.genes) or not _is_text("".join(info.genes)):
        raise BadAnswer(
            f"the served engine's config names {len(info.genes)} genes of which some have no name or share one"
        )
    if info.views.size_px > MOST_VIEW_PX:
        raise BadAnswer(f"the served engine's config says that views have {info.views.size_px} px")
    if info.mpp is not None and not _is_number(info.mpp, above=0):
        raise BadAnswer(f"the served engine's config says that it was trained at {info.mpp!r} µm/px")
    if not isinstance(info.trained, bool):
        raise BadAnswer(f"the served engine's config says trained: {info.trained!r}")
    nameless = [name for name in _IDENTITIES if not getattr(info, name)]
    if nameless:
        raise BadAnswer(f"the served engine's config says nothing of {', '.join(nameless)}")
    return info if info.runs_on else replace(info, runs_on=backend)


def read_served(parameters: Mapping[str, str]) -> dict[str, str]:
    """Names of the releases that a server serves → names of their engines, by the config of ``slide_info``.

    Raises
    ------
    BadAnswer
        If it says what cannot be.
    """
    try:
        served = json.loads(parameters.get(contract.SERVED_PARAMETER, "null"))
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the config of {contract.MODEL_INFO} says what no server serves: {error}") from error
    if served is None:  # one release, exported before releases had names
        return {contract.MODEL_ENGINE: contract.MODEL_ENGINE}
    told = [*served, *served.values()] if isinstance(served, dict) else [None]
    if not served or not all(isinstance(name, str) and name and _is_text(name) for name in told):
        raise BadAnswer(f"the config of {contract.MODEL_INFO} says what no server serves")
    return dict(served)


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


def is_dead_stub(message: str) -> bool:
    """Whether an error of Triton's says that a Python model's process is gone for good."""
    return "tub process" in message and "healthy" in message


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
    if not (
        isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side <= MOST_PX for side in size)
    ):
        raise BadAnswer(f"INFO says that the slide's size is {_shown(size)}")
    if mpp is not None and not _is_number(mpp, above=0):
        raise BadAnswer(f"INFO says {_shown(mpp)} µm/px")
    if not all(_is_text(facts[name]) for name in _WORDS):
        raise BadAnswer("INFO says something other than words of the slide's format")
    if not (facts["mpp_source"] is None or _is_text(facts["mpp_source"])):
        raise BadAnswer("INFO says something other than words of the source of µm/px")
    for name, most in (("tissue_fraction", 1.0), ("pitch_px", float(MOST_PX))):
        if not _is_number(facts[name]) or not 0 <= facts[name] <= most:
            raise BadAnswer(f"INFO says {name} {_shown(facts[name])}")
    facts["size"], facts["fingerprint"] = tuple(size), _fingerprint(told)
    centers = _tensor(answer, contract.CENTER, np.int32, (None, 2))
    names = _tensor(answer, "SPOT_NAME", np.object_, (len(centers),))
    if not ((centers >= 0) & (centers < size)).all():
        raise BadAnswer(f"{contract.CENTER} holds spots outside the slide of {size[0]}×{size[1]} px")
    thumbnail = _tensor(answer, "THUMBNAIL", np.uint8, (None, None, 3))
    if not thumbnail.size:
        raise BadAnswer("THUMBNAIL is empty")
    try:
        spots = tuple(name.decode() for name in names)
    except (AttributeError, UnicodeDecodeError) as error:
        raise BadAnswer("a name in SPOT_NAME is not UTF-8") from error
    if not all(spots) or not _is_text("".join(spots)):
        raise BadAnswer("a name in SPOT_NAME is empty, or holds a NUL")
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
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"INFO is no JSON: {error}") from error
    if not isinstance(facts, dict):
        raise BadAnswer("INFO is no JSON object")
    return facts


def _fingerprint(facts: dict[str, Any]) -> str:
    found = facts.get("fingerprint")
    if not (_is_text(found) and found):
        raise BadAnswer(f"INFO says that the slide's fingerprint is {_shown(found)}")
    return str(found)


def _is_number(value: Any, *, above: float = -math.inf) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= _MOST and value > above


def _is_text(value: Any) -> bool:
    """Whether it is words that a file can hold: HDF5 takes no NUL, and UTF-8 no half of a character."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _shown(value: Any) -> str:
    try:
        words = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number beyond all"
    return words if len(words) <= 100 else f"{words[:100]}…"
