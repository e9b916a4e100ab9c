"""Sections: targets by formula, and every bad input named."""

import numpy as np
import pytest
from m2ost.data.counts import CountTable, read_counts_table
from m2ost.data.datasets import read_sections
from m2ost.data.errors import DataError
from m2ost.data.views import ViewCache
from m2ost_contract import ViewGeometry
from m2ost_preprocess.errors import SpotError

from . import files
from .files import COUNTS, GENES, NAMES


def test_targets_of_panel_and_of_all_genes(tmp_path):
    [section] = read_sections(files.her2(tmp_path))
    panel = ("CD3E", "ACTB")
    kept = section.expressed(panel)
    assert len(kept) == 5
    assert kept.left_out == {"zero total": 1}
    rows = np.delete(np.arange(6), 1)
    chosen = COUNTS[rows][:, [3, 0]]
    np.testing.assert_allclose(kept.targets(panel), np.log1p(1e6 * chosen / chosen.sum(1, keepdims=True)), rtol=1e-6)
    of_all = np.log1p(1e6 * chosen / COUNTS[rows].sum(1, keepdims=True))
    np.testing.assert_allclose(kept.targets(panel, "log1p_cpm_total"), of_all, rtol=1e-6)
    assert len(section.expressed(panel, "log1p_cpm_total")) == 6
    with pytest.raises(DataError, match="1 spots have a total of 0"):
        section.targets(panel)
    with pytest.raises(DataError, match="unknown target 'counts'"):
        section.targets(panel, "counts")


def test_a_gene_of_the_panel_that_a_section_lacks_is_named(tmp_path):
    [section] = read_sections(files.her2(tmp_path))
    with pytest.raises(DataError, match=r"section A1: 2 of the panel's 3 genes are absent from its counts \(X, Y\)"):
        section.targets(("X", "ACTB", "Y"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"genes": ("A", "B", "A", "C")}, "gene 'A' appears 2 times"),
        ({"names": (*NAMES[:5], NAMES[0])}, "spot '2x3' appears 2 times"),
        ({"counts": np.where(COUNTS == 7, np.nan, COUNTS)}, "spot 4x3, gene ACTB: nan is no count"),
        ({"counts": np.where(COUNTS == 7, -1, COUNTS)}, "spot 4x3, gene ACTB: -1.0 is no count"),
        ({"counts": np.where(COUNTS == 7, np.inf, COUNTS)}, "inf is no count"),
        ({"counts": [["x", 1, 2, 3]] * 6}, "column 'ACTB': holds text"),
        ({"counts": [], "names": ()}, "the table is empty"),
        ({"names": tuple("abcdef")}, "none of the 6 spots of its position file is a row"),
    ],
)
def test_bad_counts_are_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_sections(files.her2(tmp_path, **content))


def test_unreadable_counts(tmp_path):
    for raw in (b"", b"\x1f\x8bdamaged"):
        path = tmp_path / "counts.tsv.gz"
        path.write_bytes(raw)
        with pytest.raises(DataError, match="cannot read the counts"):
            read_counts_table(path)


def test_an_empty_table_has_no_spots(tmp_path):
    with pytest.raises(DataError, match="the table is empty"):
        CountTable((), GENES, files.sparse.csr_matrix((0, 4)), tmp_path)


def test_a_spot_file_without_pixel_columns(tmp_path):
    files.her2(tmp_path)
    (tmp_path / "spots" / "A1_selection.tsv").write_text("new_x\tnew_y\n1\t2\n")
    with pytest.raises(SpotError, match="no pixel columns among new_x, new_y"):
        read_sections(tmp_path)


def test_files_that_are_absent_are_named_with_what_was_looked_for(tmp_path):
    files.her2(tmp_path)
    (tmp_path / "images" / "A1.jpg").unlink()
    with pytest.raises(DataError, match=r"A1 has no image; looked for images/HE/A1.jpg, images/A1.jpg"):
        read_sections(tmp_path)


def test_an_image_of_another_size_than_the_spots_imply(tmp_path):
    files.her2(tmp_path)
    files.image(tmp_path / "images" / "A1.jpg", (100, 100))
    [section] = read_sections(tmp_path)
    with pytest.raises(SpotError, match=r"section A1: pixel_x, pixel_y from .* on a slide of 100×100 px: 6 of 6 spots"):
        ViewCache(tmp_path / "cache").views(section, ViewGeometry(size_px=16))
    files.image(tmp_path / "images" / "A1.jpg", (150, 180))
    with pytest.raises(DataError, match=r"A1, spot .* on .*A1\.jpg: .*lies outside the slide; .*same resolution"):
        ViewCache(tmp_path / "cache").views(section, ViewGeometry(size_px=16))
    assert list((tmp_path / "cache").iterdir()) == []


def test_places_on_the_array_are_not_cut_as_pixels(tmp_path):
    files.her2(tmp_path)
    files.selection_tsv(tmp_path / "spots" / "A1_selection.tsv", centers=files.ARRAY)
    [section] = read_sections(tmp_path)
    with pytest.raises(SpotError, match=r"section A1: pixel_x, pixel_y from \(2, 3\) to \(4, 4\).* places on an array"):
        ViewCache(tmp_path / "cache").views(section, ViewGeometry(size_px=16))
    assert list((tmp_path / "cache").iterdir()) == []
