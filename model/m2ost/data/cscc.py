"""Cutaneous squamous cell carcinoma, Ji et al. 2020: the files of GSE144240 in one folder.

``GSM…_P2_ST_rep1.jpg``, ``GSM…_P2_ST_rep1_stdata.tsv`` and ``GSM…_spot_data-selection-P2_ST_rep1.tsv``, the tables also
gzipped; the three may have different GSM numbers. A section is named ``P2_ST_rep1``, its patient ``P2``. The counts are
those of the whole array, the selection those of the spots under tissue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2ost_preprocess.slides.spots import read_spots

from .counts import read_counts_table
from .layout import array_mpp, choose, find_single
from .section import Section, join

PITCH_UM = 150.0
"""Between spots of 110 µm."""

SELECTIONS = ("GSM*_spot_data-selection-P*.tsv", "GSM*_spot_data-selection-P*.tsv.gz")
ONE = "keep one"


def is_layout(root: Path) -> bool:
    """Whether ``root`` looks like this data set."""
    return bool(_names(root))


def read(root: Path, names: Sequence[str] | None = None) -> list[Section]:
    """Sections of the data set; see :func:`m2ost.data.datasets.read_sections`."""
    sections = []
    for name in choose(root, _names(root), names):
        spots = read_spots(find_single(root, name, "selection of spots", _forms(f"spot_data-selection-{name}"), ONE))
        sections.append(
            join(
                name=name,
                patient=name.split("_")[0],
                image=find_single(root, name, "image", [f"GSM*_{name}.jpg"], "unpack the .jpg.gz of GEO by gunzip"),
                spots=spots,
                table=read_counts_table(find_single(root, name, "counts", _forms(f"{name}_stdata"), ONE)),
                mpp=array_mpp(spots, PITCH_UM),
            )
        )
    return sections


def _names(root: Path) -> list[str]:
    files = [path.name for pattern in SELECTIONS for path in root.glob(pattern)]
    return sorted({name.partition("-selection-")[2].partition(".tsv")[0] for name in files})


def _forms(stem: str) -> list[str]:
    return [f"GSM*_{stem}.tsv", f"GSM*_{stem}.tsv.gz"]
