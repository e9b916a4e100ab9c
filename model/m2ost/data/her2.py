"""HER2+ breast cancer, Andersson et al. 2021: the layouts of its Zenodo deposit and of its repository.

``images/HE/<A1>.jpg`` or ``images/<A1>.jpg``; ``count-matrices/<A1>.tsv`` or ``counts/<A1>.tsv``, also gzipped;
``spot-selections/<A1>_selection.tsv`` or ``spots/<A1>_selection.tsv``. The letter of a section names the patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2ost_preprocess.slides.spots import read_spots

from .counts import read_counts_table
from .layout import choose, find_one
from .section import Section, join

MPP = {"A": None}
"""µm/px by patient where it is not the data set's 0.688; patient A was imaged at another pitch."""

IMAGES = ("images/HE/{name}.jpg", "images/{name}.jpg")
COUNTS = tuple(f"{folder}/{{name}}.tsv{gz}" for folder in ("count-matrices", "counts") for gz in ("", ".gz"))
SPOTS = ("spot-selections/{name}_selection.tsv", "spots/{name}_selection.tsv")


def is_layout(root: Path) -> bool:
    """Whether ``root`` looks like this data set."""
    return any((root / pattern).parent.is_dir() for pattern in SPOTS)


def read(root: Path, names: Sequence[str] | None = None) -> list[Section]:
    """Sections of the data set; see :func:`m2ost.data.datasets.read_sections`."""
    found = _spot_files(root)
    return [_read(root, name, found[name]) for name in choose(root, sorted(found), names)]


def read_without_images(root: Path, names: Sequence[str] | None = None) -> list[Section]:
    """The same of a folder that need not hold images: spots and counts, for what sees none.

    A section's ``image`` is where its image would be.
    """
    found = _spot_files(root)
    return [
        _read(root, name, found[name], root / IMAGES[-1].format(name=name))
        for name in choose(root, sorted(found), names)
    ]


def _spot_files(root: Path) -> dict[str, Path]:
    """Spot files by section."""
    return {p.name.removesuffix("_selection.tsv"): p for pattern in SPOTS for p in root.glob(pattern.format(name="*"))}


def _read(root: Path, name: str, spots: Path, image: Path | None = None) -> Section:
    return join(
        name=name,
        patient=name[0],
        image=image or find_one(root, name, "image", IMAGES),
        spots=read_spots(spots),
        table=read_counts_table(find_one(root, name, "counts", COUNTS)),
        mpp=MPP.get(name[0], 0.688),
    )
