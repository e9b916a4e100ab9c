"""Names, shapes and meaning of everything that crosses a wall: tensors, statuses, view geometry, manifest.

Standard library and numpy only, so that every room (and any foreign client) can import it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from .engine_plan import EnginePlan

MAX_ROWS = 256
"""Most spots in one request; no step of an ensemble allows fewer."""

SLIDE = "SLIDE"
CENTER = "CENTER"
SCALE = "SCALE"
STATUS = "STATUS"
TICKET = "TICKET"
"""By which an ensemble asks the tiler for the views of a request whose turn has come."""
EXPRESSION = "EXPRESSION"

MODEL_ENGINE = "m2ost"
MODEL_SLIDE = "m2ost_slide"
MODEL_PATCHES = "m2ost_patches"
MODEL_TILER = "slide_tiler"
MODEL_INFO = "slide_info"
MODEL_GUARD = "row_guard"

SCALE_MIN, SCALE_MAX = 1 / 16, 8.0
"""Accepted SCALE. At 8 the 896-px window of the coarsest view covers 7,168 level-0 pixels (147 MiB decoded)."""

RELEASE_PARAMETER = "release"
"""Request parameter: sha256 of the release that the client means; the tiler refuses any other."""

PYRAMID_PARAMETER = "pyramid"
"""Request parameter: true lets the tiler cut coarse views from the slide's own lower levels where one fits."""

BACKGROUND_PARAMETER = "background"
"""Request parameter: true lets requests of others go first, as those of an archive should."""

FINGERPRINT_PARAMETER = "fingerprint"
"""Request parameter of ``slide_info``: true asks for the content's identity alone, for which no pixel is decoded."""

MAX_SHOWN_NAME = 200
"""Characters of a slide's name that messages and logs show."""

WAITING_METRIC = "m2ost_tiler_waiting_requests"
"""Metric of the server: requests that wait for the tiler. Triton's own count of pending requests has none of them, as
the tiler takes each as it comes."""

QUEUE_FULL = "requests wait for this server"
"""Words of the refusal of a request while too many wait: it tells a server that is full from one that is away."""

ENV_SLIDE_ROOTS = "M2OST_SLIDE_ROOTS"
"""Environment variable of the server: JSON object, root name → folder."""

ENV_TILE_CACHE_MIB = "M2OST_TILE_CACHE_MIB"
"""Environment variable of the server: most MiB of decoded tiles that the tiler keeps; 512 where it is not set."""

READERS = ("auto", "cucim", "openslide", "image")
"""Who may be asked to read slides; ``auto`` takes the first that is found to give a file's pixels."""

ENV_READER = "M2OST_READER"
"""Environment variable of whoever decodes slides: the reader to use for all of them, in place of the one that is found
to serve each."""

ENV_ALLOWED_FORMATS = "M2OST_ALLOWED_FORMATS"
"""Environment variable of whoever decodes slides: formats, with commas between, that a later OpenSlide may read,
although it is not known which other files it opens for them."""

ENV_DECODER_MEMORY_MIB = "M2OST_DECODER_MEMORY_MIB"
"""Environment variable of whoever decodes slides: most MiB that a process which decodes may take; 8192 where it is not
set, 0 for no limit."""

ENV_DECODER_TRACE = "M2OST_DECODER_TRACE"
"""Environment variable of the server: file that decoders note in when they read and cut."""


class RowStatus(IntEnum):
    """Why a row has no value (tensor STATUS, INT32)."""

    OK = 0
    OUTSIDE_SLIDE = 1
    BAD_SCALE = 2
    SLIDE_UNAVAILABLE = 3
    DECODE_FAILED = 4

    @property
    def reason(self) -> str:
        """The status in words."""
        return _REASONS[self]


_REASONS = {
    RowStatus.OK: "scored",
    RowStatus.OUTSIDE_SLIDE: "the spot's centre lies outside the slide",
    RowStatus.BAD_SCALE: f"SCALE is not a finite number in [{SCALE_MIN:g}, {SCALE_MAX:g}]",
    RowStatus.SLIDE_UNAVAILABLE: "the row's slide cannot be opened",
    RowStatus.DECODE_FAILED: "the pixels around the spot cannot be decoded",
}


@dataclass(frozen=True)
class ViewGeometry:
    """The nested views of one spot.

    Parameters
    ----------
    size_px : int
        Side of every view, in view pixels (224 in the paper).
    factors : tuple of int
        Side of each view's window in units of ``size_px``, fine to coarse ((1, 2, 4) in the paper).

    Raises
    ------
    ValueError
        If the size is not even and positive, or the factors do not start at 1 and double from view to view.
    """

    size_px: int = 224
    factors: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(int(f) for f in self.factors))
        if self.size_px <= 0 or self.size_px % 2:
            raise ValueError(f"view size must be even and positive, not {self.size_px}")
        if self.factors != tuple(2**i for i in range(len(self.factors))) or not self.factors:
            raise ValueError(f"view factors must be 1, 2, 4, …, not {self.factors}")

    @property
    def n_views(self) -> int:
        """Number of views."""
        return len(self.factors)

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names VIEW0, VIEW1, …, fine to coarse."""
        return tuple(f"VIEW{i}" for i in range(self.n_views))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one view: (size_px, size_px, 3), RGB."""
        return (self.size_px, self.size_px, 3)

    def window_px(self, view: int, scale: float = 1.0) -> int:
        """Side of the square that ``view`` covers, in level-0 pixels, at ``scale`` level-0 px per view px."""
        return max(1, math.floor(self.size_px * self.factors[view] * scale + 0.5))

    def windows(self, center: tuple[int, int], scale: float = 1.0) -> list[tuple[int, int, int]]:
        """``(left, top, side)`` of every view's window in level-0 pixels; may reach outside the slide."""
        x, y = center
        sides = [self.window_px(i, scale) for i in range(self.n_views)]
        return [(x - side // 2, y - side // 2, side) for side in sides]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"size_px": self.size_px, "factors": list(self.factors)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ViewGeometry:
        """Inverse of :meth:`to_dict`."""
        return cls(size_px=int(raw["size_px"]), factors=tuple(raw["factors"]))


@dataclass(frozen=True)
class EngineInfo:
    """What the config parameters of the served model ``m2ost`` tell a client that has only an address.

    Parameters
    ----------
    genes : tuple of str
        Output order of EXPRESSION.
    views : ViewGeometry
        The views the engine takes.
    mpp : float or None
        µm per view pixel of the finest view that the network was trained at; None where not recorded.
    target : str
        Meaning of EXPRESSION, e.g. ``log1p_cpm_panel``.
    trained : bool
        False for a freshly initialised network.
    precision : str
        ``fp32``, ``fp16`` …
    checkpoint_sha256, onnx_sha256, release_sha256 : str
        Identity of the weights, of the graph and of the release.
    """

    genes: tuple[str, ...]
    views: ViewGeometry
    mpp: float | None
    target: str
    trained: bool
    precision: str
    checkpoint_sha256: str
    onnx_sha256: str
    release_sha256: str

    def to_parameters(self) -> dict[str, str]:
        """Triton model parameters: every value a string."""
        raw = {f: getattr(self, f) for f in self.__dataclass_fields__}
        raw["genes"] = "\n".join(self.genes)
        raw["views"] = self.views.to_dict()
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in raw.items()}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> EngineInfo:
        """Inverse of :meth:`to_parameters`.

        Raises
        ------
        ValueError
            If a parameter is missing: the server does not serve a release of this project.
        """
        missing = sorted(set(cls.__dataclass_fields__) - set(parameters))
        if missing:
            raise ValueError(
                f"the model's config has no parameter {', '.join(missing)}: not a release that `m2ost export` made"
            )
        values: dict[str, Any] = {k: parameters[k] for k in cls.__dataclass_fields__}
        values["genes"] = tuple(values["genes"].split("\n"))
        values["views"] = ViewGeometry.from_dict(json.loads(values["views"]))
        values["mpp"] = json.loads(values["mpp"])
        values["trained"] = json.loads(values["trained"])
        return cls(**values)


class ManifestError(Exception):
    """A release's manifest is damaged."""


@dataclass(frozen=True)
class Manifest:
    """``manifest.json`` of a release: where it came from and what was checked.

    Parameters
    ----------
    engine : EngineInfo
        Identity, panel and views, as served.
    architecture : dict
        The network's configuration.
    parity : dict
        For every batch size checked, the maximum absolute difference between ONNX Runtime and PyTorch (float32); for
        another precision also ``gate``: what its gate measured.
    tools : dict
        Versions of the tools that made the release.
    files : dict
        Relative path → sha256 of every file of the release.
    graph : dict
        Of the ONNX file: its nodes, its operators, and the bytes of its weights by type.
    engines : tuple of EnginePlan
        The engines built from it.
    """

    engine: EngineInfo
    architecture: dict[str, Any]
    parity: dict[str, Any]
    tools: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    graph: dict[str, Any] = field(default_factory=dict)
    engines: tuple[EnginePlan, ...] = ()

    FILENAME = "manifest.json"

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``."""
        raw = asdict(self)
        raw["engine"]["views"] = self.engine.views.to_dict()
        (folder / self.FILENAME).write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a release's manifest.

        Raises
        ------
        FileNotFoundError
            If ``folder`` is not a release.
        ManifestError
            If its manifest is damaged.
        """
        path = folder / cls.FILENAME
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: not a release (no {cls.FILENAME}); make one with `m2ost export`")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            engine = dict(raw.pop("engine"))
            engine["genes"] = tuple(engine["genes"])
            engine["views"] = ViewGeometry.from_dict(engine["views"])
            plans = tuple(EnginePlan(**{**plan, "rows": tuple(plan["rows"])}) for plan in raw.pop("engines", ()))
            return cls(engine=EngineInfo(**engine), engines=plans, **raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ManifestError(f"{path}: damaged manifest ({error!r}); export the release anew") from error


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def as_centers(centers: Any) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Spot centres as the tensor CENTER: the floor of the coordinates.

    Parameters
    ----------
    centers : array_like, shape (n, 2)
        x, y in level-0 pixels; integers or floats.

    Returns
    -------
    ndarray of int32, shape (n, 2)

    Raises
    ------
    ValueError
        If the shape is wrong, or a coordinate is not finite or beyond int32; names the first such row.
    """
    values = np.asarray(centers, dtype=np.float64)
    if values.size == 0:
        return np.zeros((0, 2), np.int32)
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"centers must have shape (n, 2), not {values.shape}")
    limit = float(2**31 - 1)
    bad = ~(np.isfinite(values) & (np.abs(values) < limit)).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"spot {row}: centre {values[row].tolist()} is not a finite pixel position")
    return np.floor(values).astype(np.int32)
