"""Every layout on small files: names, patients, positions, genes, resolution."""

import json

import numpy as np
import pytest
from m2ost.data.datasets import LAYOUTS, read_sections
from m2ost.data.errors import DataError
from m2ost_preprocess.errors import SpotError

from . import files
from .files import CENTERS, COUNTS, GENES, NAMES


def assert_is_the_sample(section, counts=COUNTS, genes=GENES):
    assert section.spot_names == NAMES
    assert section.centers.tolist() == [list(center) for center in CENTERS]
    np.testing.assert_array_equal(section.panel_counts(genes), counts)


def hbc_mendeley(root):
    files.image(root / "HE_BT23209_C1.jpg")
    files.counts_tsv(root / "BC23209_C1_stdata.tsv.gz")
    rows = [f"{name},{x},{y}" for name, (x, y) in zip(NAMES, CENTERS, strict=True)]
    files.text(root / "spots_BT23209_C1.csv.gz", "\n".join([",X,Y", *rows]) + "\n")
    files.text(root / "BC23209_C1_Coords.tsv", "not read")


def hbc_stnet(root):
    folder = root / "Luminal_A" / "BC23209"
    files.image(folder / "BC23209_C1.jpg")
    files.counts_tsv(folder / "BC23209_C1.tsv")
    files.selection_tsv(folder / "BC23209_C1.spots.txt")


@pytest.mark.parametrize("write", [hbc_mendeley, hbc_stnet])
def test_hbc(tmp_path, write):
    write(tmp_path)
    [section] = read_sections(tmp_path)
    assert (section.name, section.patient) == ("BC23209_C1", "BC23209")
    assert section.mpp == pytest.approx(200 / files.PITCH_PX)
    assert_is_the_sample(section)


def test_hbc_puts_back_the_genes_that_a_section_has_no_count_of(tmp_path):
    hbc_mendeley(tmp_path)
    hbc_stnet(tmp_path / "more")
    folder = tmp_path / "more" / "Luminal_A" / "BC23209"
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace("BC23209_C1", "BC23270_D2")))
    files.counts_tsv(folder / "BC23270_D2.tsv", COUNTS[:, ::2], GENES[::2])
    (tmp_path / "more" / "Luminal_A").rename(tmp_path / "Luminal_A")
    full, narrow = read_sections(tmp_path)
    assert_is_the_sample(full)
    assert_is_the_sample(narrow, COUNTS * [1, 0, 1, 0])


def test_cscc(tmp_path):
    files.image(tmp_path / "GSM1_P2_ST_rep1.jpg")
    files.counts_tsv(tmp_path / "GSM2_P2_ST_rep1_stdata.tsv.gz", [*COUNTS, COUNTS[0]], names=(*NAMES, "30x30"))
    files.selection_tsv(tmp_path / "GSM3_spot_data-selection-P2_ST_rep1.tsv.gz")
    [section] = read_sections(tmp_path)
    assert (section.name, section.patient) == ("P2_ST_rep1", "P2")
    assert section.mpp == pytest.approx(150 / files.PITCH_PX)
    assert section.left_out == {"without a position": 1}
    assert_is_the_sample(section)


def test_a_packed_image_of_cscc_is_to_be_unpacked(tmp_path):
    files.counts_tsv(tmp_path / "GSM1_P2_ST_rep1_stdata.tsv")
    files.selection_tsv(tmp_path / "GSM1_spot_data-selection-P2_ST_rep1.tsv")
    files.text(tmp_path / "GSM1_P2_ST_rep1.jpg.gz", "packed")
    with pytest.raises(DataError, match=r"P2_ST_rep1 has no image.*gunzip"):
        read_sections(tmp_path)


def visium(folder, *, header=True, matrix="h5", **spatial):
    files.visium_spatial(folder, header=header, **spatial)
    if matrix == "h5":
        files.visium_h5(folder / "filtered_feature_bc_matrix.h5")
    else:
        files.visium_mtx(folder / "filtered_feature_bc_matrix")
    files.image(folder / "he.tif")
    return folder


VISIUM_GENES = ("ACTB", "ENSG2", "ENSG3", "CD3E")


@pytest.mark.parametrize(("header", "matrix"), [(True, "h5"), (False, "mtx")])
def test_visium_folder(tmp_path, header, matrix):
    [section] = read_sections(visium(tmp_path / "V1", header=header, matrix=matrix))
    assert (section.name, section.patient) == ("V1", "V1")
    assert section.genes == VISIUM_GENES
    assert section.mpp == pytest.approx(100 / files.PITCH_PX)
    assert_is_the_sample(section, genes=VISIUM_GENES)


def test_visium_folder_of_folders(tmp_path):
    visium(tmp_path / "V1" / "outs")
    visium(tmp_path / "V2")
    assert [section.name for section in read_sections(tmp_path)] == ["V1", "V2"]
    assert [section.name for section in read_sections(tmp_path, ["V2"])] == ["V2"]


def test_visium_resolution_is_none_where_diameter_and_pitch_disagree(tmp_path):
    [section] = read_sections(visium(tmp_path, diameter_px=55 * files.PITCH_PX / 100))
    assert section.mpp is None


@pytest.mark.parametrize("mpp", [0.2, 0.3])
def test_bins_of_visium_hd_are_one_patients(tmp_path, mpp):
    for bins in ("square_008um", "square_016um"):
        folder = tmp_path / "S1" / "binned_outputs" / bins
        files.visium_hd_spatial(folder, mpp=mpp)
        files.visium_h5(folder / "filtered_feature_bc_matrix.h5")
        files.image(folder / "he.tif")
    sections = read_sections(tmp_path / "S1" / "binned_outputs")
    assert [section.name for section in sections] == ["square_008um", "square_016um"]
    assert {section.patient for section in sections} == {"binned_outputs"}
    for section in sections:
        # 8 µm in 40 px: a file that says 0.3 contradicts its own positions.
        assert section.mpp == (0.2 if mpp == 0.2 else None)
        assert_is_the_sample(section, genes=VISIUM_GENES)


def test_visium_needs_one_image(tmp_path):
    folder = visium(tmp_path / "V1")
    files.image(folder / "other.png")
    with pytest.raises(DataError, match=r"2 files that may be its full-resolution image \(he.tif, other.png\)"):
        read_sections(folder)
    for path in (folder / "he.tif", folder / "other.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"no full-resolution image.*that Space Ranger was given"):
        read_sections(folder)


def test_visium_files_that_are_damaged(tmp_path):
    folder = visium(tmp_path / "V1")
    files.text(folder / "spatial" / "scalefactors_json.json", "{}")
    with pytest.raises(DataError, match="spot_diameter_fullres"):
        read_sections(folder)
    visium(folder)
    (folder / "filtered_feature_bc_matrix.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"filtered_feature_bc_matrix.h5: not a feature-barcode matrix"):
        read_sections(folder)
    with files.h5py.File(files.visium_h5(folder / "filtered_feature_bc_matrix.h5"), "a") as file:
        file["matrix/indices"][0] = 1_000_000
    with pytest.raises(DataError, match="not a feature-barcode matrix"):
        read_sections(folder)


def test_visium_h5ad_with_its_image_beside(tmp_path):
    files.h5ad(tmp_path / "a[1].h5ad", genes=("ACTB", "TWIN", "TWIN", "CD3E"), ids=["ENSG1", "ENSG2", "ENSG3", "ENSG4"])
    files.image(tmp_path / "a[1].png")
    [section] = read_sections(tmp_path)
    assert (section.name, section.mpp) == ("a[1]", None)
    assert_is_the_sample(section, genes=VISIUM_GENES)


def test_an_h5ad_of_anndata_0_6(tmp_path):
    files.old_h5ad(tmp_path / "a.h5ad")
    files.image(tmp_path / "a.tif")
    assert_is_the_sample(read_sections(tmp_path)[0])
    files.old_h5ad(tmp_path / "a.h5ad", LOGGED)
    with pytest.raises(DataError, match="none of X"):
        read_sections(tmp_path)


LOGGED = np.log1p(COUNTS)


@pytest.mark.parametrize("where", [{"x": COUNTS}, {"x": LOGGED, "counts": COUNTS}, {"x": LOGGED, "raw": COUNTS}])
def test_h5ad_counts_are_found_where_they_are(tmp_path, where):
    files.h5ad(tmp_path / "a.h5ad", **where)
    files.image(tmp_path / "a.tif")
    assert_is_the_sample(read_sections(tmp_path)[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": LOGGED}, "none of X"),
        ({"x": np.where(COUNTS == 7, np.nan, COUNTS)}, "spot 4x3, gene ACTB: nan is no count"),
        ({"x": -COUNTS}, "is no count"),
        ({"spatial": None}, r"obsm\['spatial'\]"),
        ({"spatial": np.zeros((6, 3))}, "not \\(spots, 2\\)"),
        ({"genes": ("A", "B", "B", "C")}, "gene 'B' appears 2 times"),
    ],
)
def test_h5ad_that_cannot_be_used(tmp_path, content, message):
    files.h5ad(tmp_path / "a.h5ad", **content)
    files.image(tmp_path / "a.tif")
    with pytest.raises((DataError, SpotError), match=message):
        read_sections(tmp_path)


def test_hest(tmp_path):
    [section] = read_sections(files.hest(tmp_path))
    assert (section.name, section.patient, section.mpp) == ("TENX1", "Lung: Patient 1", 0.52)
    assert section.image == tmp_path / "wsis" / "TENX1.tif"
    assert_is_the_sample(section)


@pytest.mark.parametrize("patient", [None, float("nan"), ""])
def test_hest_without_a_patient_counts_as_one_of_the_study(tmp_path, patient):
    assert read_sections(files.hest(tmp_path, metadata={"patient": patient}))[0].patient == "Lung"


def test_hest_needs_more_than_patches(tmp_path):
    (files.hest(tmp_path) / "wsis" / "TENX1.tif").unlink()
    with pytest.raises(DataError, match=r"no image; looked for wsis/TENX1.tif"):
        read_sections(tmp_path)
    files.text(tmp_path / "patches" / "TENX1.h5", "patches")
    with pytest.raises(DataError, match=r"patches/TENX1.h5 only.*fetch wsis/TENX1.tif"):
        read_sections(tmp_path)


@pytest.mark.parametrize("metadata", [{"pixel_size_um_estimated": value} for value in (None, 0, float("nan"), "wide")])
def test_hest_needs_its_resolution(tmp_path, metadata):
    with pytest.raises(DataError, match="pixel_size_um_estimated"):
        read_sections(files.hest(tmp_path, metadata=metadata))


def test_damaged_metadata_of_hest(tmp_path):
    path = files.hest(tmp_path) / "metadata" / "TENX1.json"
    path.write_text(json.dumps([1]))
    with pytest.raises(DataError, match=r"TENX1.json: cannot read"):
        read_sections(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="no metadata"):
        read_sections(tmp_path)


def test_unknown_layouts_and_sections_are_named(tmp_path):
    with pytest.raises(DataError, match=f"no known layout of files; name one of {', '.join(LAYOUTS)}"):
        read_sections(tmp_path)
    with pytest.raises(DataError, match="unknown layout 'xenium'"):
        read_sections(tmp_path, layout="xenium")
    with pytest.raises(DataError, match="no such folder"):
        read_sections(tmp_path / "absent")
    files.her2(tmp_path)
    with pytest.raises(DataError, match="no section 'Z9'; there are A1"):
        read_sections(tmp_path, ["Z9"])
    for layout in set(LAYOUTS) - {"her2"}:
        with pytest.raises(DataError, match="no section found"):
            read_sections(tmp_path, layout=layout)
