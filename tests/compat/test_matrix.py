"""Every form of file is served as what is in it, or refused in words; with cuCIM and without, to the same bytes."""

from __future__ import annotations

import re

import numpy as np
import openslide
import pytest
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.errors import UnreadableSlide

from tests.compat import cells, table

pytestmark = pytest.mark.usefixtures("heavy")

GROUPS = (cells.tiff_cells, cells.single_cells, cells.plain_cells, cells.dicom_cells)

NOT_READ = re.compile(r"JPEG 2000, (RGB|grey)$|^strips, (LZW|JPEG|Deflate), parts left out$")
"""Valid files that no reader decodes."""

A_WAY_OUT = re.compile(r"vips|bfconvert|convert the slide anew|write one|decode")


@pytest.fixture(scope="module")
def picture(svs):
    region = openslide.OpenSlide(svs).read_region((900, 1100), 0, cells.SIZE)
    return np.asarray(region.convert("RGB"))


@pytest.fixture(scope="module")
def decoders():
    with Decoder(threads=0) as with_cucim, Decoder(threads=0, without=("cucim",)) as without:
        yield with_cucim, without


def what_is_made_of(decoder, path):
    """Pixels of a file, or the words of its refusal."""
    try:
        return decoder.read(path, 0, 0, *cells.SIZE)
    except UnreadableSlide as error:
        return error.message


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_what_is_served_is_what_the_file_holds(group, picture, decoders, tmp_path):
    wrong = []
    for cell in group(tmp_path, picture):
        made, other = (what_is_made_of(decoder, cell.path) for decoder in decoders)
        if isinstance(made, str) or isinstance(other, str):
            refused = isinstance(made, str) and isinstance(other, str)
            allowed = cell.truth is None or NOT_READ.search(cell.name)
            if not (refused and allowed and A_WAY_OUT.search(made) and str(tmp_path) not in made + other):
                wrong.append(f"{cell.name}: {made if isinstance(made, str) else other}")
        elif cell.truth is None or NOT_READ.search(cell.name):
            wrong.append(f"{cell.name}: served, though nobody can say what it is")
        elif not np.array_equal(made, other):
            wrong.append(f"{cell.name}: other pixels without cuCIM")
        elif made.shape != cell.truth.shape or np.abs(made.astype(float) - cell.truth).mean() > cell.loss:
            wrong.append(f"{cell.name}: not what the file holds")
    assert not wrong, "\n".join(wrong)


def test_the_table_of_formats_is_what_the_readers_do(svs):
    assert table.table_of_page() == table.make_table(svs), "run `make formats`"
