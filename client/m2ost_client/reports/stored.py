"""A result that lies on disk, read back from its table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anndata
import h5py
import numpy as np
from anndata.io import read_elem
from m2ost_contract import EngineInfo, RowStatus, ViewGeometry
from m2ost_preprocess.decoder import SlideInfo
from m2ost_preprocess.slides.spots import Spots, median_pitch_px

from ..errors import InputError
from ..results import SlideResult

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
T = TypeVar("T")


def read_stored(path: Path) -> tuple[SlideResult, dict[str, Any]]:
    """Read a result back from the ``.h5ad`` that `m2ost predict` writes.

    Parameters
    ----------
    path : Path
        Its stem names the result.

    Returns
    -------
    SlideResult
        As it was, but for the slide's own grid and the sha256 of the graph, which a table does not hold.
    dict
        Its metadata; what was None then is absent.

    Raises
    ------
    InputError
        If the file cannot be read or is not a result of `m2ost predict`.
    """
    try:
        table = anndata.read_h5ad(path)
        metadata, thumbnail = _facts(table.uns)
        slide, views = metadata["slide_facts"], metadata["views"]
        centers = np.asarray(table.obsm["spatial"], np.float64).reshape(-1, 2)
        pitch_px = float(slide.get("pitch_px") or 0.0)
        info = SlideInfo(
            size=(int(slide["size"][0]), int(slide["size"][1])),
            mpp=slide.get("mpp"),
            mpp_source=slide.get("mpp_source"),
            vendor=slide["vendor"],
            reader=slide["reader"],
            reader_reason=slide["reader_reason"],
            note=slide["note"],
            fingerprint=slide["fingerprint"],
            tissue_fraction=slide["tissue_fraction"],
            pitch_px=pitch_px,
            centers=np.zeros((0, 2)),
            names=(),
            thumbnail=thumbnail,
        )
        engine = EngineInfo(
            genes=tuple(map(str, table.var_names)),
            views=ViewGeometry.from_dict(views),
            mpp=views.get("trained_at_mpp"),
            target=metadata["target"],
            trained=metadata["trained"],
            precision=metadata["precision"],
            checkpoint_sha256=metadata["checkpoint_sha256"],
            onnx_sha256="",
            release_sha256=metadata["release_sha256"],
            runs_on=metadata.get("engine", ""),
        )
        spots = Spots(
            centers,
            tuple(map(str, table.obs_names)),
            pitch_px or median_pitch_px(centers),
            metadata["spots"]["source"],
        )
        status = np.array([_status_value(name) for name in table.obs["status"]], np.int32)
        expression = np.asarray(table.X, np.float32).reshape(len(spots), len(engine.genes))
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise _not_a_result(path, error) from error
    return SlideResult(path.stem, info, engine, spots, expression, status), metadata


def read_facts(path: Path) -> tuple[dict[str, Any], Pixels]:
    """The metadata and the thumbnail of a result, without its expression.

    Raises
    ------
    InputError
        If the file cannot be read or is not a result of `m2ost predict`.
    """
    return _read_part(path, "uns", _facts)


def read_genes(path: Path) -> tuple[str, ...]:
    """The gene panel of a result, without its expression.

    Raises
    ------
    InputError
        If the file cannot be read or is not a result of `m2ost predict`.
    """
    return _read_part(path, "var", lambda var: tuple(map(str, var.index)))


def _read_part(path: Path, part: str, made: Callable[[Any], T]) -> T:
    """What is made of one part of a result, without reading the others."""
    try:
        with h5py.File(path) as file:
            return made(read_elem(file[part]))
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise _not_a_result(path, error) from error


def _facts(uns: Any) -> tuple[dict[str, Any], Pixels]:
    (picture,) = uns["spatial"].values()
    return _plain(uns["m2ost"]), np.asarray(picture["images"]["hires"], np.uint8)


def _plain(value: Any) -> Any:
    """Python's own types for what HDF5 gives back."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _status_value(name: str) -> int:
    return int(RowStatus[name]) if name in RowStatus.__members__ else int(name.removeprefix("status "))


def _not_a_result(path: Path, error: Exception) -> InputError:
    what = f"no {error}" if isinstance(error, KeyError) else str(error)
    return InputError(f"{path}: not a result of `m2ost predict` that can be read ({what}); predict the slide again")
