"""Where spots lie that a mask asks for, and which masks are refused because they could be read in two ways."""

import asyncio
import struct
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tifffile
from m2ost_client import InputError
from m2ost_client import masks as module
from m2ost_client.archive import Settings, SlideRow, read_slides
from m2ost_client.archive.plan import plan_slide, result_key
from PIL import Image

from tests.support.releases import ENGINE

LEFT = np.zeros((150, 200), np.uint8)
LEFT[:, :100] = 1
OPAQUE = np.full_like(LEFT, 255)
PITCH_UM = 50.0  # 100 px of a slide of 2000 × 1500
HALF = {(x, y) for x in range(50, 1000, 100) for y in range(50, 1500, 100)}


@pytest.fixture
def plan(result, tmp_path):
    """Lays out the spots of a slide of 2000 × 1500 px with a mask of this file name."""

    def lay_out(name, pitch_um=PITCH_UM):
        async def describe(pitch_um, mpp):
            assert pitch_um is None, "no grid over what is taken for tissue"
            return result.slide

        row = SlideRow("a", "a.svs", mask=str(tmp_path / name))
        return asyncio.run(plan_slide(row, describe, Settings(pitch_um=pitch_um), ENGINE))

    return lay_out


def image(mode="L", **options):
    """How to save an image of a mode."""

    def save(pixels, path):
        made = Image.fromarray(pixels)
        (made if made.mode == mode else made.convert(mode)).save(path, **options)

    return save


def tiff(**options):
    return lambda pixels, path: tifffile.imwrite(path, pixels, **options)


def grey_palette(first, other, used=(0, 1)):
    """An indexed PNG whose first colour is ``first`` and whose others are ``other``."""

    def save(pixels, path):
        made = Image.fromarray(np.where(pixels > 0, used[1], used[0]).astype(np.uint8), "P")
        made.putpalette([*first, *(other * 255)])
        made.save(path)

    return save


READ = {
    "one.png": (LEFT, image()),
    "white.png": (LEFT * 255, image()),
    "bits.png": (LEFT * 255, image("1")),
    "labels.png": (LEFT.astype(np.uint16) * 256, image("I;16")),
    "labels.tif": (LEFT.astype(np.uint16) * 700, tiff()),
    "signed.tif": (LEFT.astype(np.int32) * 70_000, tiff()),
    "bytes.tif": (LEFT.astype(np.int8) * 100, tiff()),
    "unsigned.tif": (LEFT.astype(np.uint32) * 70_000, tiff()),
    "big.tif": (LEFT, tiff(bigtiff=True, compression="zlib", tile=(64, 64))),
    "lzw.tif": (LEFT * 255, image(compression="tiff_lzw")),
    "fax.tif": (LEFT * 255, image("1", compression="group4")),
    "rgb.png": (np.dstack([LEFT] * 3), image("RGB")),
    "opaque.png": (np.dstack([LEFT * 255] * 3 + [OPAQUE]), image("RGBA")),
    "shown.png": (np.dstack([LEFT * 255] * 4), image("RGBA")),
    "grey_alpha.png": (np.dstack([LEFT * 255] * 2), image("LA")),
    "index.png": (LEFT, grey_palette((0, 0, 0), (255, 255, 255))),
    "clear_black.png": (LEFT * 255, image(transparency=0)),
}


@pytest.mark.parametrize("name", READ)
def test_the_marked_half_is_scored_whatever_the_form(plan, tmp_path, name):
    pixels, save = READ[name]
    save(pixels, tmp_path / name)
    laid_out = plan(name)
    assert {tuple(center) for center in laid_out.centers.tolist()} == HALF
    assert laid_out.spots.source == "grid on a mask, pitch 50 µm"


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("names_on_server", [False, True])
def test_a_list_gives_each_slide_its_own_mask_from_beside_the_list(result, tmp_path, form, names_on_server):
    (tmp_path / "masks").mkdir()
    image()(LEFT, tmp_path / "masks" / "left.png")
    image()(1 - LEFT, tmp_path / "right.png")
    cells = {"slide_id": ["a", "b", "c"], "path": ["wsi/a.svs"] * 3, "mask": ["masks/left.png", None, "right.png"]}
    table, slides = pd.DataFrame(cells), tmp_path / f"slides.{form}"
    if form == "parquet":
        table.to_parquet(slides)
    else:
        table.to_csv(slides, index=False, sep="\t" if form == "tsv" else ",")
    over_tissue = replace(result.slide, centers=np.array([[7.0, 8.0]]), names=("grid",))

    async def describe(pitch_um, mpp):
        return result.slide if pitch_um is None else over_tissue

    def centers_of(row):
        plan = asyncio.run(plan_slide(row, describe, Settings(pitch_um=PITCH_UM), ENGINE))
        return {tuple(center) for center in plan.centers.tolist()}

    left, without, right = map(centers_of, read_slides(str(slides), names_on_server=names_on_server).rows)
    assert left == HALF
    assert without == {(7, 8)}
    assert right == {(x + 1000, y) for x, y in HALF}


def test_a_result_is_that_of_its_masks_content(tmp_path):
    """So that a run that goes on scores a slide anew whose mask was painted over, and no other."""

    def key(name):
        row = SlideRow("a", "a.svs", mask=None if name is None else str(tmp_path / name))
        return result_key(row, "f", Settings(), ENGINE)

    image()(LEFT, tmp_path / "left.png")
    image()(LEFT, tmp_path / "copy.png")
    before = key("left.png")
    assert before == key("copy.png") != key(None)
    image()(1 - LEFT, tmp_path / "left.png")
    assert key("left.png") not in (before, key(None))
    (tmp_path / "left.png").unlink()
    with pytest.raises(InputError, match=r"left\.png: cannot be read"):
        key("left.png")


COLOURS = np.dstack([LEFT * 255, LEFT * 0, LEFT * 0])
REFUSED = {
    "alpha.png": (np.dstack([OPAQUE] * 3 + [LEFT * 255]), image("RGBA"), "transparency over what is not black"),
    "key.png": (LEFT * 255, image(transparency=255), "transparency over what is not black"),
    "key16.png": (LEFT.astype(np.uint16), image("I;16", transparency=0), "transparency in an image of 16 bits"),
    "probability.tif": (LEFT * np.float32(0.9), tiff(), r"fractions.*probability >= 0\.5"),
    "doubles.tif": (LEFT * 0.9, tiff(), "fractions or numbers of 64 bits"),
    "bool.tif": (LEFT.astype(bool), tiff(), r"stores white as 0.*mask\.astype\('uint8'\)"),
    "inverted.tif": (LEFT * 255, tiff(photometric="miniswhite"), "stores white as 0"),
    "negative.tif": (LEFT.astype(np.int16) - 1, tiff(), "numbers below 0"),
    "negative_bytes.tif": (LEFT.astype(np.int8) - 1, tiff(), "numbers below 0"),
    "colours.png": (COLOURS, image("RGB"), "colours: which of them is tissue"),
    "deep.tif": (np.dstack([LEFT.astype(np.uint16)] * 3), tiff(photometric="rgb"), "pixels of another kind"),
    "palette.png": (LEFT, grey_palette((255, 255, 255), (0, 0, 0)), "first entry is not its only black"),
    "two_blacks.png": (LEFT, grey_palette((0, 0, 0), (0, 0, 0)), "first entry is not its only black"),
    "coloured.png": (LEFT, grey_palette((0, 0, 0), (255, 0, 0)), "colours: which of them is tissue"),
    "mask.jpg": (LEFT * 255, image(), "a JPEG has specks"),
    "jpeg.tif": (LEFT * 255, image(compression="jpeg"), "compressed with losses"),
    "mask.bmp": (LEFT * 255, image(), "neither PNG nor TIFF"),
    "pages.tif": (np.stack([LEFT, 1 - LEFT]), tiff(photometric="minisblack"), "2 images in one file"),
    "turned.tif": (LEFT, tiff(extratags=[(274, "H", 1, 3, True)]), "its orientation tag turns it"),
    "narrow.png": (LEFT[:, 20:], image(), "180 × 150 px is not the shape of the slide, 2000 × 1500"),
    "black.png": (LEFT * 0, image(), "the mask is black throughout"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_that_can_be_read_in_two_ways_is_refused_with_what_to_do(plan, tmp_path, name):
    pixels, save, words = REFUSED[name]
    save(pixels, tmp_path / name)
    with pytest.raises(InputError, match=words) as error:
        plan(name)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert ";" in str(error.value)


def test_the_lower_levels_of_a_pyramid_are_no_further_masks(plan, tmp_path):
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        writer.write(LEFT, tile=(64, 64), metadata=None)
        writer.write(LEFT[::2, ::2], tile=(64, 64), subfiletype=1, metadata=None)
    assert {tuple(center) for center in plan("pyramid.tif").centers.tolist()} == HALF


def test_a_mask_is_read_in_strips(plan, tmp_path, monkeypatch):
    upper = np.zeros_like(LEFT)
    upper[:70] = 1
    monkeypatch.setattr(module, "_STRIP_PIXELS", 7 * LEFT.shape[1])
    image()(upper, tmp_path / "upper.png")
    assert {y for _, y in plan("upper.png").centers.tolist()} == set(range(50, 700, 100))


def test_more_pixels_than_pillow_allows_are_read_and_more_than_ours_are_refused_by_their_header(
    plan, tmp_path, monkeypatch
):
    image()(LEFT, tmp_path / "left.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert len(plan("left.png").spots) == len(HALF)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 15_000, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    (tmp_path / "huge.png").write_bytes(start)
    with pytest.raises(InputError, match=r"20000 × 15000 px are over 268,435,456; make it smaller"):
        plan("huge.png")


def test_a_damaged_mask_and_one_too_fine_for_the_grid(plan, tmp_path):
    image()(LEFT, tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-40])
    with pytest.raises(InputError, match=r"half\.png: cannot read the mask"):
        plan("half.png")
    speck = np.zeros_like(LEFT)
    speck[3, 3] = 1
    image()(speck, tmp_path / "speck.png")
    with pytest.raises(InputError, match=r"speck\.png: of no cell of the grid, 50 µm wide, is at least half"):
        plan("speck.png")
