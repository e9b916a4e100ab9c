"""The thresholds of the gate: one file, every limit with its reason."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..errors import ThresholdsError

SHIPPED = Path(__file__).with_name("thresholds.yaml")

AT_LEAST, AT_MOST = "at_least", "at_most"
_DIRECTION = {
    "served_over_bare": AT_LEAST,
    "requests_per_batch": AT_LEAST,
    "bytes_per_spot": AT_MOST,
    "p95_over_p50": AT_MOST,
    "failed_requests": AT_MOST,
    "speedup_over_istar": AT_LEAST,
    "baseline_tolerance": AT_MOST,
}


@dataclass(frozen=True)
class Limit:
    """One threshold.

    Parameters
    ----------
    value : float
    because : str
        Why it stands there.
    """

    value: float
    because: str


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What the gate lets pass. A limit that is None is not asked for.

    Parameters
    ----------
    served_over_bare : Limit or None
        Least ratio of served to bare spots/s, median over the rounds of one run.
    requests_per_batch : Limit or None
        Least requests in an execution of the engine, in the closed load.
    bytes_per_spot : Limit or None
        Most bytes of a serialized request, a spot.
    p95_over_p50 : Limit or None
        Most ratio of the latencies' percentiles in the closed load.
    failed_requests : Limit or None
        Most failed requests of the closed load.
    speedup_over_istar : dict of str to Limit
        Variant of the baseline → least ratio, median.
    baseline_tolerance : Limit or None
        By how much, as a share, an absolute figure may be worse than the baseline's; at most 1.
    """

    served_over_bare: Limit | None = None
    requests_per_batch: Limit | None = None
    bytes_per_spot: Limit | None = None
    p95_over_p50: Limit | None = None
    failed_requests: Limit | None = None
    speedup_over_istar: Mapping[str, Limit] = field(default_factory=dict)
    baseline_tolerance: Limit | None = None


def read_thresholds(path: Path) -> Thresholds:
    """Read a thresholds file (YAML).

    Raises
    ------
    ThresholdsError
        If it is not there, is not YAML, has a key that is unknown (names the nearest known), or a limit that is not a
        number or has no reason.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ThresholdsError(f"{path}: cannot be read ({error}); the shipped one is {SHIPPED}") from error
    except yaml.YAMLError as error:
        raise ThresholdsError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise ThresholdsError(f"{path}: holds no thresholds; the shipped file is {SHIPPED}")
    known = [f.name for f in fields(Thresholds)]
    _check_keys(raw, known, f"{path}: ")
    values: dict[str, Any] = {}
    for name, entry in raw.items():
        where = f"{path}: {name}"
        if name == "speedup_over_istar":
            if not isinstance(entry or {}, dict):
                raise ThresholdsError(f"{where}: must name variants, such as `stock: {{at_least: 100, because: …}}`")
            values[name] = {
                str(variant): _limit(limit, f"{where}: {variant}", _DIRECTION[name])
                for variant, limit in (entry or {}).items()
            }
        else:
            values[name] = _limit(entry, where, _DIRECTION[name])
    thresholds = Thresholds(**values)
    tolerance = thresholds.baseline_tolerance
    if tolerance is not None and tolerance.value > 1:
        raise ThresholdsError(f"{path}: baseline_tolerance: a share of at most 1, not {tolerance.value:g}")
    return thresholds


def _limit(entry: Any, where: str, direction: str) -> Limit:
    if not isinstance(entry, dict):
        raise ThresholdsError(f"{where}: must be `{{{direction}: NUMBER, because: WHY}}`, not {entry!r}")
    _check_keys(entry, (direction, "because"), f"{where}: ")
    value, because = entry.get(direction), entry.get("because")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ThresholdsError(f"{where}: {direction} must be a number, 0 or more; not {value!r}")
    if not isinstance(because, str) or not because.strip():
        raise ThresholdsError(f"{where}: `because` is missing: say why the limit stands where it does")
    return Limit(float(value), " ".join(because.split()))


def _check_keys(raw: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in raw:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise ThresholdsError(f"{where}unknown key {key!r}; the nearest known is {nearest[0]!r}")
