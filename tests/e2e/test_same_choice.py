"""Mask, region and pyramid mean the same to `m2ost predict` and to `m2ost rescore`."""

import anndata
import numpy as np
import pytest
from PIL import Image

from tests.support.command import error_of, m2ost

SIDE, REGION = 40, "3000,3000,2500,2500"


@pytest.fixture
def mask(pyramid, tmp_path):
    """The left half of a square's worth of cells of the slide."""
    import tifffile

    with tifffile.TiffFile(pyramid) as file:
        height, width = file.pages[0].shape[:2]
    pixels = np.zeros((round(height * SIDE / width), SIDE), np.uint8)
    pixels[:, : SIDE // 2] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def run(*arguments):
    status, output, errors = m2ost(*arguments)
    assert status == 0, (output, errors)


@pytest.mark.parametrize("pyramidal", [(), ("--pyramid",)], ids=["as_defined", "from_lower_levels"])
def test_predict_and_rescore_score_the_same(pyramidal, narrow_release, pyramid, mask, tmp_path):
    common = ("--release", narrow_release, "--pitch-um", "200", "--batch-rows", "32", *pyramidal)
    run("predict", pyramid, "--mask", mask, "--region", REGION, "-o", tmp_path / "one", *common)
    (tmp_path / "list.csv").write_text(f'slide_id,path,mask,region\na,{pyramid},mask.png,"{REGION}"\n')
    run("rescore", tmp_path / "list.csv", "-o", tmp_path / "all", *common)
    one = anndata.read_h5ad(tmp_path / "one" / f"{pyramid.stem}.h5ad")
    same = anndata.read_h5ad(tmp_path / "all" / "results" / "a.h5ad")
    assert len(one) > 2
    assert list(one.obs_names) == list(same.obs_names)
    np.testing.assert_array_equal(one.obsm["spatial"], same.obsm["spatial"])
    np.testing.assert_allclose(one.X, same.X, rtol=0, atol=1e-5)
    left, top, width, height = map(int, REGION.split(","))
    inside = (one.obsm["spatial"] >= (left, top)) & (one.obsm["spatial"] < (left + width, top + height))
    assert inside.all()
    assert same.uns["m2ost"]["region"] == one.uns["m2ost"]["region"] == REGION
    assert one.uns["m2ost"]["spots"]["source"] == same.uns["m2ost"]["spots"]["source"]
    assert (
        bool(one.uns["m2ost"]["lower_levels"]) == bool(same.uns["m2ost"].get("lower_levels", False)) == bool(pyramidal)
    )


def test_an_archive_is_not_scored_half_from_lower_levels(narrow_release, pyramid, mask, tmp_path):
    (tmp_path / "list.csv").write_text(f'slide_id,path,mask,region\na,{pyramid},mask.png,"{REGION}"\n')
    common = (
        "rescore",
        tmp_path / "list.csv",
        "-o",
        tmp_path / "all",
        "--release",
        narrow_release,
        "--pitch-um",
        "300",
    )
    run(*common)
    before = anndata.read_h5ad(tmp_path / "all" / "results" / "a.h5ad").X
    assert "pyramid was False, is True" in error_of(*common, "--pyramid")
    run(*common, "--pyramid", "--rescore-changed")
    after = anndata.read_h5ad(tmp_path / "all" / "results" / "a.h5ad").X
    assert not np.array_equal(before, after)


def test_a_region_of_a_list_is_looked_at_when_it_is_read(tmp_path):
    (tmp_path / "list.csv").write_text('slide_id,path,region\na,a.svs,"1,2,3"\n')
    error = error_of("rescore", tmp_path / "list.csv", "-o", tmp_path / "all")
    assert "column 'region'" in error
    assert "write X,Y,W,H" in error


def test_a_mask_and_a_file_of_spots_exclude_each_other(tmp_path):
    both = ("predict", "a.svs", "--mask", "m.png", "--spots", "s.csv", "-o", tmp_path / "out")
    assert "--mask is for a grid" in error_of(*both)
