"""The inputs of requests, as tritonclient takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from m2ost_contract import CENTER, FEATURES, POSITION, SCALE, SLIDE
from tritonclient.utils import np_to_triton_dtype


def tensor(name: str, array: np.ndarray[Any, Any]) -> triton.InferInput:
    """An input that holds ``array``."""
    value = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    value.set_data_from_numpy(array)
    return value


def spot_inputs(slide: str, centers: np.ndarray[Any, np.dtype[np.int32]], scale: float) -> list[triton.InferInput]:
    """Inputs of ``m2ost_slide``.

    Parameters
    ----------
    slide : str
        Its name on the server.
    centers : ndarray of int32, shape (n, 2)
        x, y in level-0 pixels.
    scale : float
        Level-0 pixels per view pixel of the finest view.
    """
    n = len(centers)
    return [
        tensor(SLIDE, np.full((n, 1), slide, dtype=object)),
        tensor(CENTER, centers),
        tensor(SCALE, np.full((n, 1), scale, np.float32)),
    ]


def whole_slide_inputs(
    slide: str,
    centers: np.ndarray[Any, np.dtype[np.int32]],
    positions: np.ndarray[Any, np.dtype[np.int32]],
    scale: float,
) -> list[triton.InferInput]:
    """Inputs of ``m2ost_slide`` of a slide-level release.

    Parameters
    ----------
    slide, centers, scale
        As of :func:`spot_inputs`: all spots of the slide.
    positions : ndarray of int32, shape (n, 2)
        x, y of the spots on the array.
    """
    return [
        tensor(SLIDE, np.array([slide], dtype=object)),
        tensor(CENTER, centers),
        tensor(POSITION, positions),
        tensor(SCALE, np.array([scale], np.float32)),
    ]


def sequence_inputs(
    features: np.ndarray[Any, np.dtype[np.float32]], positions: np.ndarray[Any, np.dtype[np.int32]]
) -> list[triton.InferInput]:
    """Inputs of ``m2ost_sequence``: features (n, d) and x, y on the array (n, 2) of all spots of a slide."""
    return [tensor(FEATURES, features), tensor(POSITION, positions)]


def view_inputs(names: Sequence[str], views: Sequence[np.ndarray[Any, Any]]) -> list[triton.InferInput]:
    """Inputs of ``m2ost_patches``.

    Parameters
    ----------
    names : sequence of str
        Of the views, fine to coarse.
    views : sequence of ndarray of uint8, each shape (n, size_px, size_px, 3)
    """
    return [tensor(name, view) for name, view in zip(names, views, strict=True)]


def info_inputs(slide: str, *, pitch_um: float | None = None, mpp: float | None = None) -> list[triton.InferInput]:
    """Inputs of ``slide_info``.

    Parameters
    ----------
    slide : str
        Its name on the server.
    pitch_um : float, optional
        Pitch of a grid over the tissue in µm.
    mpp : float, optional
        µm/px of the slide, in place of what the file says.
    """
    numbers = {"PITCH_UM": pitch_um, "MPP": mpp}
    given = [tensor(name, np.array([value], np.float64)) for name, value in numbers.items() if value is not None]
    return [tensor(SLIDE, np.array([slide], dtype=object)), *given]
