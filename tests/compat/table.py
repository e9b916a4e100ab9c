"""The table of formats in `docs/slides.md`, from what the readers do with the matrix: ``make formats`` writes it."""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path

import numpy as np
import openslide
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.errors import UnreadableSlide

from tests.compat import cells

PAGE = Path(__file__).parents[2] / "docs" / "slides.md"
BEGIN, END = "<!-- formats: made by `make formats` -->\n", "<!-- end of formats -->\n"
LETTERS = {"cucim": "C", "openslide": "O", "image": "P"}
LIBRARIES = ("cucim-cu12", "openslide-bin", "pillow")


def readers_of_cells(decoder: Decoder, folder: Path, picture: np.ndarray) -> dict[str, str]:
    """Cell → letter of the reader that serves it, or – where it is refused."""
    found = {}
    for cell in cells.tiff_cells(folder, picture):
        try:
            found[cell.name] = LETTERS[decoder.describe(cell.path).reader]
        except UnreadableSlide:
            found[cell.name] = "–"
    return found


def make_table(slide: Path) -> str:
    """The table as Markdown.

    Parameters
    ----------
    slide : Path
        A slide to make the cells of.
    """
    picture = np.asarray(openslide.OpenSlide(slide).read_region((900, 1100), 0, cells.SIZE).convert("RGB"))
    with tempfile.TemporaryDirectory() as folder, Decoder(threads=0) as decoder:
        found = readers_of_cells(decoder, Path(folder), picture)
    lines = [
        "| TIFF of 8 bits | " + " | ".join(cells.COMPRESSIONS) + " |",
        "|---" * (len(cells.COMPRESSIONS) + 1) + "|",
    ]
    for layout in cells.LAYOUTS:
        for colours in cells.COLOURS:
            row = [found.get(f"{layout}, {compression}, {colours}", "") for compression in cells.COMPRESSIONS]
            lines.append(f"| {layout}, {colours} | " + " | ".join(row) + " |")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    lines += [
        "",
        f"C cuCIM, O OpenSlide, P Pillow, – refused in words; {versions}, compared pixel by pixel with the truth.",
    ]
    return "\n".join(lines) + "\n"


def table_of_page() -> str:
    """What the page has."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


def main(slide: Path) -> None:
    """Write the table into the PAGE."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    PAGE.write_text(f"{before}{BEGIN}{make_table(slide)}{after}", encoding="utf-8")


if __name__ == "__main__":
    import sys

    main(Path(sys.argv[1]))
