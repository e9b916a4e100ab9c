"""Human breast cancer, He et al. 2020, both as Mendeley 29ntw7sh4r has it and as ST-Net's authors kept it.

Mendeley: ``HE_BT23209_C1.jpg``, ``BC23209_C1_stdata.tsv``, ``spots_BT23209_C1.csv`` (id, X, Y in pixels); images and
spots are named ``BT`` or ``BC``, without a rule. ST-Net: ``BC23209_C1.jpg``, ``BC23209_C1.tsv``,
``BC23209_C1.spots.txt`` (x, y, pixel_x, pixel_y, or id, X, Y). Tables may be gzipped; the files of a section lie in
one folder, at most two below the root. ``_Coords`` files annotate tumour, and are not read. Genes are Ensembl ids;
``BC23209`` is the patient.

A section's table leaves out the genes that have no count in it. They are put back, as zeros, for every gene that any
of the sections read has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from m2ost_preprocess.slides.spots import read_spots
from scipy import sparse

from .counts import CountTable, read_counts_table
from .layout import array_mpp, choose, find_one
from .section import Section, join

PITCH_UM = 200.0

SPOTS = tuple(
    f"{folder}{form}{gz}"
    for folder in ("", "*/", "*/*/")
    for form in ("spots_B[CT]*.csv", "B[CT]*.spots.txt")
    for gz in ("", ".gz")
)


def is_layout(root: Path) -> bool:
    """Whether ``root`` looks like this data set."""
    return bool(_spot_files(root))


def read(root: Path, names: Sequence[str] | None = None) -> list[Section]:
    """Sections of the data set; see :func:`m2ost.data.datasets.read_sections`."""
    found = _spot_files(root)
    chosen = choose(root, sorted(found), names)
    tables = _same_genes([read_counts_table(_counts(found[name].parent, name)) for name in chosen])
    sections = []
    for name, table in zip(chosen, tables, strict=True):
        spots = read_spots(found[name])
        sections.append(
            join(
                name=name,
                patient=name.split("_")[0],
                image=_image(found[name].parent, name),
                spots=spots,
                table=table,
                mpp=array_mpp(spots, PITCH_UM),
            )
        )
    return sections


def _spot_files(root: Path) -> dict[str, Path]:
    """Spot files by section, the patient named ``BC…``."""
    files = {}
    for pattern in SPOTS:
        for path in sorted(root.glob(pattern)):
            name = path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".spots.txt").removeprefix("spots_")
            files["BC" + name[2:]] = path
    return files


def _image(folder: Path, name: str) -> Path:
    return find_one(folder, name, "image", ("{name}.jpg", "HE_{name}.jpg", f"HE_BT{name[2:]}.jpg"))


def _counts(folder: Path, name: str) -> Path:
    return find_one(folder, name, "counts", [f"{{name}}{end}.tsv{gz}" for end in ("", "_stdata") for gz in ("", ".gz")])


def _same_genes(tables: Sequence[CountTable]) -> list[CountTable]:
    genes = tuple(sorted({gene for table in tables for gene in table.genes}))
    column = {gene: i for i, gene in enumerate(genes)}
    completed = []
    for table in tables:
        counts = table.counts
        columns = np.array([column[gene] for gene in table.genes])[counts.indices]
        wide = sparse.csr_matrix((counts.data, columns, counts.indptr), shape=(counts.shape[0], len(genes)))
        completed.append(CountTable(table.spot_names, genes, wide, table.source))
    return completed
