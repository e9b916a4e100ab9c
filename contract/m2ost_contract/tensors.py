"""Names and meaning of what clients, server and decoders say to each other: tensors, parameters, statuses."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np

MAX_ROWS = 256
"""Most spots in one request; no step of an ensemble allows fewer."""

SLIDE = "SLIDE"
CENTER = "CENTER"
SCALE = "SCALE"
STATUS = "STATUS"
TICKET = "TICKET"
"""By which an ensemble asks the tiler for the views of a request whose turn has come."""
EXPRESSION = "EXPRESSION"
POSITION = "POSITION"
"""x and y of a spot on the array, which slide-level networks take."""
FEATURES = "FEATURES"
"""What passes between the two stages of a slide-level network."""

MODEL_ENGINE = "m2ost"
MODEL_SLIDE = "m2ost_slide"
MODEL_PATCHES = "m2ost_patches"
MODEL_TILER = "slide_tiler"
MODEL_INFO = "slide_info"
MODEL_GUARD = "row_guard"
MODEL_SPOTS, MODEL_SEQUENCE = "m2ost_spots", "m2ost_sequence"
"""Of slide-level releases alone: spots of a slide → FEATURES, and FEATURES of a whole slide → EXPRESSION."""

SCALE_MIN, SCALE_MAX = 1 / 16, 8.0
"""Accepted SCALE. At 8 the 896-px window of the coarsest view covers 7,168 level-0 pixels (147 MiB decoded)."""

RELEASE_PARAMETER = "release"
"""Request parameter: sha256 of the release that the client means; tiler and engine refuse any other."""

OTHER_RELEASE = "this server serves release"
"""Words of that refusal."""

PYRAMID_PARAMETER = "pyramid"
"""Request parameter: true lets the tiler cut coarse views from the slide's own lower levels where one fits."""

BACKGROUND_PARAMETER = "background"
"""Request parameter: true lets requests of others go first, as those of an archive should."""

FINGERPRINT_PARAMETER = "fingerprint"
"""Request parameter of ``slide_info``: true asks for the content's identity alone, for which no pixel is decoded."""

PROBE_SENDER = "m2ost-probe"
"""What the ids of a supervisor's probes begin with: nobody waits for their answers."""

MAX_SHOWN_NAME = 200
"""Characters of a slide's name that messages and logs show."""

WAITING_METRIC = "m2ost_tiler_waiting_requests"
ENGINE_WAITING_METRIC = "m2ost_engine_waiting_rows"
"""Metrics of the server: requests that wait for the tiler, and rows that wait for an engine in the Python backend.
Triton's own count of pending requests has none of them, as tiler and engine take each request as it comes."""

PROBE_SLIDE = "m2ost-probe"
"""What a supervisor's probe asks for. No slide name can be this, and whoever is asked answers at once."""

ENGINE_RUNS_METRIC = "m2ost_engine_session_runs_total"
"""Metric of the server: runs of an engine in the Python backend."""

GUARDED_METRIC = "m2ost_guarded_rows_total"
"""Metric of the server: rows of slides that have passed the engine."""

QUEUE_FULL = "wait for this server"
"""Words of the refusal of a request while too many wait: it tells a server that is full from one that is away."""

METRICS_URL_ENV = "M2OST_METRICS_URL"
"""Environment variable of the server: the address of its own metrics, where it is not Triton's default."""

ENGINE_ROWS_PARAMETER, ENGINE_ROWS = "engine_rows", 64
"""Parameter of the config, and its default: rows that may wait for the engine before the tiler waits. Two batches of
the engine, whose views take 28 MiB."""

WAITING_ROWS_PARAMETER, WAITING_ROWS = "waiting_rows", 1024
"""Parameter of the config of an engine in the Python backend, and its default: rows that may wait for it. Their views
take 441 KiB each at 224 px."""

ENV_RESTARTS = "M2OST_RESTARTS"
"""Environment variable of the server: how often its supervisor has replaced it so far; 0 where it is not set."""

ENV_SLIDE_ROOTS = "M2OST_SLIDE_ROOTS"
"""Environment variable of the server: JSON object, root name → folder."""

ENV_TILE_CACHE_MIB = "M2OST_TILE_CACHE_MIB"
"""Environment variable of the server: most MiB of decoded tiles that the tiler keeps; where it is not
set 512, or an eighth of the memory that the server may have."""

ENV_VIEW_CACHE_MIB = "M2OST_VIEW_CACHE_MIB"
"""Environment variable of whoever decodes slides: most MiB of views that are kept after they were cut; 0 where it is
not set. A tiler of several releases sets it, for these are asked for the same spots."""

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

ENV_DECODER_NICE = "M2OST_DECODER_NICE"
"""Environment variable of a process that decodes slides: how far it gives way to others, as nice(1) counts; 0 where it
is not set."""

ENV_DECODER_TRACE = "M2OST_DECODER_TRACE"
"""Environment variable of the server: file that decoders note in when they read and cut."""


def shm_mib(view_bytes: int) -> int:
    """MiB of /dev/shm that are certain to hold a request with so many bytes of views, in steps of 64.

    They lie there twice, in the regions of the tiler and of the engine, and the regions have holes.
    """
    return -(-3 * view_bytes // (64 << 20)) * 64


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


def spans(rows: int, usual: int, most: int) -> list[slice]:
    """Cut rows into spans of ``usual`` rows, none of more than ``most``, and none of a single row where that can be.

    On a CPU, ONNX Runtime multiplies one row by another kernel, whose last bits differ: with two rows and more a spot's
    values are the same bits whatever is scored beside it.
    """
    starts = list(range(0, rows, usual))
    if len(starts) > 1 and rows - starts[-1] == 1:
        if usual < most:
            starts.pop()
        elif usual > 2:
            starts[-1] -= 1
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], rows][: len(starts)], strict=True)]


def number_of_rows(settings: Mapping[str, str], parameter: str, default: int) -> int:
    """A number of rows in a model's config.

    Raises
    ------
    ValueError
        If it is not a number above 0.
    """
    given = settings.get(parameter, str(default))
    if not (given.isdecimal() and int(given)):
        raise ValueError(f"the config's parameter {parameter!r} is {given!r}, not a number above 0")
    return int(given)
