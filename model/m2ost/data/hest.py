"""HEST-1k, Jaume et al. 2024: ``st/<id>.h5ad``, ``wsis/<id>.tif`` and ``metadata/<id>.json``.

``obsm["spatial"]`` is in pixels of the full-resolution image. ``patches/<id>.h5`` is not used: it holds one patch of
224 px at 0.5 µm/px around a spot, and the wider views of the same spot reach beyond it.

Patients are numbered within a study ("Patient 1"), so that the study's title is part of a patient's name here; sections
of a study that names none count as one patient.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2ost_preprocess.slides.spots import read_spots

from .errors import DataError
from .layout import choose, find_one
from .matrices import read_h5ad
from .section import Section, join


def is_layout(root: Path) -> bool:
    """Whether ``root`` looks like this data set."""
    return bool(_names(root))


def read(root: Path, names: Sequence[str] | None = None) -> list[Section]:
    """Sections of the data set; see :func:`m2ost.data.datasets.read_sections`."""
    return [_read(root, name) for name in choose(root, _names(root), names)]


def _names(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "st").glob("*.h5ad"))


def _read(root: Path, name: str) -> Section:
    if (root / "patches" / f"{name}.h5").is_file() and not (root / "wsis" / f"{name}.tif").is_file():
        raise DataError(
            f"{root}: section {name} has patches/{name}.h5 only, and the views of a spot reach beyond its patch; fetch "
            f"wsis/{name}.tif"
        )
    image = find_one(root, name, "image", ["wsis/{name}.tif"])
    patient, mpp = _metadata(find_one(root, name, "metadata", ["metadata/{name}.json"]))
    path = root / "st" / f"{name}.h5ad"
    return join(name=name, patient=patient, image=image, spots=read_spots(path), table=read_h5ad(path), mpp=mpp)


def _metadata(path: Path) -> tuple[str, float]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        mpp = float(raw["pixel_size_um_estimated"])
        patient = ": ".join(raw[key] for key in ("dataset_title", "patient") if _is_text(raw.get(key)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot read pixel_size_um_estimated and patient: {error!r}; fetch it anew") from error
    if not (math.isfinite(mpp) and mpp > 0):
        raise DataError(f"{path}: pixel_size_um_estimated is {mpp}; µm/px is a positive number")
    return patient or path.stem, mpp


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
