"""10x Visium: folders that Space Ranger wrote, and ``.h5ad`` files with their image beside them.

A section's folder holds ``filtered_feature_bc_matrix.h5`` (or the folder ``filtered_feature_bc_matrix``);
``spatial/tissue_positions.csv`` (Space Ranger 2 and later), ``spatial/tissue_positions_list.csv`` or, for Visium HD,
``spatial/tissue_positions.parquet``; ``spatial/scalefactors_json.json``; and one image: the full-resolution one that
Space Ranger was given, put there by the user, as Space Ranger does not copy it. The root is such a folder, or holds
such folders, or holds their ``outs``. Visium HD has one for each size of its bins: ``binned_outputs/square_008um`` and
the like.
Else ``<name>.h5ad`` with ``obsm["spatial"]`` in full-resolution pixels and ``<name>.tif`` (or ``.svs``, ``.jpg`` …).

Genes have their symbol where it is unique; a gene whose symbol is not has its Ensembl id.
The files do not say whose tissue it is: every section counts as a patient of its own, but bins of one folder as one.

``spot_diameter_fullres`` is *not* the 55 µm of a printed spot: 10x defines it as the pixels across a theoretical spot
of 65 µm, hence µm/px = 65 / spot_diameter_fullres. Neighbours on the array are 100 µm apart, which gives the same
figure from the positions; where the two differ by over 5 %, one of them is wrong, and the section's µm/px is None.
For Visium HD the file says ``microns_per_pixel`` itself, and neighbours are ``bin_size_um`` apart.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from pathlib import Path

from m2ost_preprocess.slides.spots import Spots, read_spots

from .counts import CountTable
from .errors import DataError
from .layout import choose, find_one, find_single
from .matrices import read_10x_h5, read_10x_mtx, read_h5ad
from .section import Section, join

DIAMETER_UM, PITCH_UM = 65.0, 100.0
POSITIONS = tuple(
    f"spatial/tissue_positions{end}{gz}" for end in (".csv", "_list.csv", ".parquet") for gz in ("", ".gz")
)
BINS = re.compile(r"square_\d+um")
MATRIX = "filtered_feature_bc_matrix"
IMAGES = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".jpg", ".jpeg", ".png")


def is_layout(root: Path) -> bool:
    """Whether ``root`` looks like this data set."""
    return bool(_found(root))


def read(root: Path, names: Sequence[str] | None = None) -> list[Section]:
    """Sections of the data set; see :func:`m2ost.data.datasets.read_sections`."""
    found = _found(root)
    return [
        _read_folder(name, found[name]) if found[name].is_dir() else _read_h5ad(name, found[name])
        for name in choose(root, sorted(found), names)
    ]


def _found(root: Path) -> dict[str, Path]:
    """Folders and ``.h5ad`` files by section."""
    found = {path.stem: path for path in root.glob("*.h5ad") if any(path.with_suffix(end).is_file() for end in IMAGES)}
    for folder in (root.resolve(), *root.glob("*/"), *root.glob("*/outs/")):
        if any((folder / positions).is_file() for positions in POSITIONS):
            found[folder.parent.name if folder.name == "outs" else folder.name] = folder
    return found


def _read_folder(name: str, folder: Path) -> Section:
    spots = read_spots(find_one(folder, name, "positions", POSITIONS))
    return join(
        name=name,
        patient=folder.parent.name if BINS.fullmatch(folder.name) else name,
        image=_image(
            folder, name, "*", "put the full-resolution image that Space Ranger was given there, and no other"
        ),
        spots=spots,
        table=_counts(folder, name),
        mpp=_mpp(folder / "spatial" / "scalefactors_json.json", spots),
    )


def _read_h5ad(name: str, path: Path) -> Section:
    return join(
        name=name,
        patient=name,
        image=_image(path.parent, name, glob.escape(name), "keep the full-resolution one"),
        spots=read_spots(path),
        table=read_h5ad(path),
    )


def _image(folder: Path, name: str, stem: str, remedy: str) -> Path:
    return find_single(folder, name, "full-resolution image", [stem + end for end in IMAGES], remedy)


def _counts(folder: Path, name: str) -> CountTable:
    if (folder / MATRIX).is_dir() and not (folder / f"{MATRIX}.h5").is_file():
        return read_10x_mtx(folder / MATRIX)
    return read_10x_h5(find_one(folder, name, "counts", [f"{MATRIX}.h5"]))


def _mpp(path: Path, spots: Spots) -> float | None:
    try:
        factors = json.loads(path.read_text(encoding="utf-8"))
        if "bin_size_um" in factors:
            mpp, pitch_um = float(factors["microns_per_pixel"]), float(factors["bin_size_um"])
        else:
            mpp, pitch_um = DIAMETER_UM / float(factors["spot_diameter_fullres"]), PITCH_UM
        agrees = abs(mpp * spots.pitch_px / pitch_um - 1) <= 0.05
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise DataError(f"{path}: cannot read the scale of the image: {error!r}; copy the file anew") from error
    return mpp if agrees else None
