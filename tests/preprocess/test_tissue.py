"""Where the tissue is: on real sections, on pieces of them, and on pictures that are no sections."""

import gzip
import io
from functools import lru_cache

import numpy as np
import pytest
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.errors import UnknownTissue
from m2ost_preprocess.readers import open_slide
from m2ost_preprocess.slides.spots import grid, read_spots
from m2ost_preprocess.slides.tissue import MASK_PX, TissueShares, find_tissue, tissue_mask
from PIL import Image, ImageDraw, ImageFilter

from tests.support.data import shared_file

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

SECTIONS = ("B4", "C2", "C3", "C4", "C5")
CELL_PX = 100 / 0.688
"""Side of a 100-µm cell of a section in its level-0 pixels."""

WHITE_LIGHT = np.array([255, 255, 255])
INKS = {"green": (20, 130, 60), "blue": (30, 50, 220), "black": (20, 20, 22), "yellow": (240, 220, 60)}


@lru_cache
def half_size(section):
    """A section at half its resolution, which JPEG decodes in a fraction of the time."""
    image = Image.open(shared_file(f"her2st/images/{section}.jpg"))
    image.draft("RGB", (image.width // 2, image.height // 2))
    return image.convert("RGB")


def overview(image, max_px=MASK_PX):
    """What a reader's ``thumbnail`` makes of an image."""
    image = image.reduce(max(1, max(image.size) // max_px))
    image.thumbnail((max_px, max_px), Image.Resampling.BOX)
    return np.asarray(image)


@lru_cache
def whole(section, max_px=MASK_PX):
    return overview(half_size(section), max_px)


def piece(section, left, top, side):
    """A square of a section, given in its level-0 pixels."""
    return overview(half_size(section).crop((left // 2, top // 2, (left + side) // 2, (top + side) // 2)))


def cells(mask, side, cell_px=CELL_PX):
    """The 100-µm cells of a square that are tissue, and all of them."""
    return len(grid((side, side), mask, cell_px)), len(grid((side, side), np.ones_like(mask), cell_px))


def jpeg(pixels, quality):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def drawn_on(pixels, colour):
    """Pixels with a felt pen's strokes on them, and where these are: ink takes light away from what lies below."""
    strokes = Image.new("L", pixels.shape[1::-1], 0)
    height, width = pixels.shape[:2]
    pen = ImageDraw.Draw(strokes)
    pen.line([(30, 20), (38, height // 2), (25, height - 30)], fill=230, width=9)
    pen.ellipse((width * 0.1, height * 0.05, width * 0.9, height * 0.95), outline=230, width=9)
    cover = np.asarray(strokes.filter(ImageFilter.GaussianBlur(1)))[..., None] / 255
    light = 1 - cover + cover * np.array(colour) / WHITE_LIGHT
    return jpeg((pixels * light).round().astype(np.uint8), 80), cover[..., 0] > 0.5


@pytest.mark.parametrize("section", SECTIONS)
def test_the_spots_with_counts_lie_on_tissue_and_the_tissue_on_them(section):
    mask, size = find_tissue(whole(section)).mask, tuple(2 * side for side in half_size(section).size)
    with gzip.open(shared_file(f"her2st/counts/{section}.tsv.gz"), "rt") as table:
        counted = {line.split("\t", 1)[0] for line in table}
    spots = read_spots(shared_file(f"her2st/spots/{section}_selection.tsv"))
    centers = spots.centers[[name in counted for name in spots.names]]
    shares = TissueShares(mask)
    edges = centers[:, :, None] + (-CELL_PX / 2, CELL_PX / 2)
    around = [shares.between(x / size[0], y / size[1]) for x, y in edges]
    assert (np.ravel(around) >= 0.5).mean() > 0.95
    # Spots stand 200 µm apart: each stands for four cells of 100 µm.
    assert len(grid(size, mask, CELL_PX)) == pytest.approx(4 * len(centers), rel=0.1)


@pytest.mark.parametrize(
    ("section", "left", "top", "side"),
    [
        ("C2", 5200, 5000, 1300),
        ("C2", 5600, 5200, 400),
        ("C3", 3500, 2500, 1500),
        ("C3", 3300, 2200, 2400),
        ("C4", 3500, 3500, 1500),
        ("C5", 3500, 3000, 700),
        ("C5", 3500, 3000, 1500),
        ("B4", 1500, 6500, 1300),
    ],
)
def test_a_piece_that_is_tissue_throughout_is_found_whole(section, left, top, side):
    found, every = cells(find_tissue(piece(section, left, top, side)).mask, side)
    assert found >= 0.95 * every


def test_a_piece_of_another_scanners_slide_is_found_whole(svs):
    pixels = open_slide(svs).read(900, 1500, 600, 600)
    assert cells(find_tissue(pixels).mask, 600, 100 / 0.499) == (9, 9)


@pytest.mark.parametrize(
    ("section", "left", "top"),
    [
        ("B4", 6000, 1000),
        ("B4", 500, 1800),
        ("C2", 600, 600),
        ("C3", 7300, 3500),
        ("C4", 7300, 5000),
        ("C5", 600, 7500),
    ],
)
def test_glass_is_no_tissue(section, left, top):
    pixels = piece(section, left, top, 900)
    washed_out = 1 - np.linspace(0, 0.06, pixels.shape[1])[:, None] * (0.3, 1, 0.4)
    dusty = Image.fromarray(pixels)
    random = np.random.default_rng(0)
    for x, y, radius, level in random.integers((0, 0, 1, 40), (*dusty.size, 9, 150), (40, 4)).tolist():
        ImageDraw.Draw(dusty).ellipse((x - radius, y - radius, x + radius, y + radius), fill=(level,) * 3)
    for shown in (pixels, jpeg(pixels, 40), (pixels * washed_out).round().astype(np.uint8), np.asarray(dusty)):
        tissue = find_tissue(shown)
        assert not tissue.refusal
        assert tissue.mask.mean() < 0.001


@pytest.mark.parametrize("level", [0, 8, 255])
@pytest.mark.parametrize("source", ["all tissue", "a section"])
def test_padding_changes_nothing_of_the_rest(level, source):
    pixels = piece("C2", 5200, 5000, 640) if source == "all tissue" else whole("C3", 320)
    height, width = pixels.shape[:2]
    padded = np.full((height * 3, width * 10 // 3, 3), level, np.uint8)
    place = slice(height // 2, height // 2 + height), slice(width, 2 * width)
    padded[place] = pixels
    alone, tissue = find_tissue(pixels).mask, find_tissue(padded)
    assert not tissue.refusal
    inner = slice(12, -12), slice(12, -12)  # as far as gaps are closed and specks removed across the border
    np.testing.assert_array_equal(tissue.mask[place][inner], alone[inner])
    assert alone.any()
    tissue.mask[place] = False
    assert not tissue.mask.any()


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("section", ["B4", "C2"])
def test_ink_is_no_tissue(section, ink):
    pixels = whole(section, 512)
    before = find_tissue(jpeg(pixels, 80)).mask
    drawn, strokes = drawn_on(pixels, INKS[ink])
    after = find_tissue(drawn).mask
    assert after[strokes & ~before].mean() < 0.02
    # Near strokes the gaps of the tissue are closed otherwise.
    apart = np.asarray(Image.fromarray(strokes.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(15))) == 0
    assert (after != before)[apart].mean() < 0.005


def test_ink_alone_is_said():
    glass = piece("C2", 600, 600, 900)
    tissue = find_tissue(drawn_on(glass, INKS["green"])[0])
    assert tissue.mask.mean() < 0.001
    assert "not the colours of haematoxylin and eosin" in tissue.note


def fluorescence(pixels, colour):
    """A section as if it shone in one colour: bright where it was dark, on a ground with noise."""
    signal = np.clip((255 - pixels.mean(axis=2) - 40) * 1.6, 0, 255)[..., None]
    noise = np.random.default_rng(0).integers(0, 8, signal.shape)
    return np.clip(signal * colour + noise, 0, 255).astype(np.uint8)


NO_SECTIONS = {
    "DAPI": lambda pixels: fluorescence(pixels, (0.05, 0.15, 1)),
    "FITC": lambda pixels: fluorescence(pixels, (0.1, 1, 0.2)),
    "Cy5": lambda pixels: fluorescence(pixels, (1, 0, 0.1)),
    "two dyes": lambda pixels: fluorescence(pixels, (1, 0, 1)),
    "negative": lambda pixels: 255 - pixels,
    "grey": lambda pixels: np.asarray(Image.fromarray(pixels).convert("L").convert("RGB")),
    "grey JPEG": lambda pixels: jpeg(np.asarray(Image.fromarray(pixels).convert("L").convert("RGB")), 70),
}


@pytest.mark.parametrize("kind", NO_SECTIONS)
@pytest.mark.parametrize("section", ["B4", "C2"])
def test_pictures_that_are_no_stained_section_are_refused(section, kind):
    for pixels in (whole(section, 512), piece(section, 5000, 5500, 800)):
        with pytest.raises(UnknownTissue, match=r"^a\.tif: .*--spots"):
            tissue_mask(NO_SECTIONS[kind](np.ascontiguousarray(pixels)), slide="a.tif")


@pytest.mark.parametrize("section", ["B4", "C2", "C3"])
def test_a_dim_scan_has_the_same_tissue(section):
    bright, dim = (find_tissue((whole(section, 512) * light).astype(np.uint8)) for light in (1, 0.7))
    assert (bright.mask & dim.mask).sum() > 0.95 * (bright.mask | dim.mask).sum()
    assert not bright.note + dim.note


def test_a_slide_without_glass_is_said():
    solid = piece("C2", 5200, 5000, 1300).copy()
    solid[solid.mean(axis=2) > 170] = 175, 150, 190  # stroma in place of every gap
    tissue = find_tissue(solid)
    assert "no glass is seen" in tissue.note
    assert cells(tissue.mask, 1300) == (81, 81)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (2, 1), (3, 5)])
@pytest.mark.parametrize(
    ("colour", "share", "word"),
    [
        ((0, 0, 0), 0, ""),
        ((255, 255, 255), 0, ""),
        ((243, 242, 243), 0, ""),
        ((200, 120, 170), 1, "no glass"),
        ((128, 128, 128), 0, ""),
        ((100, 100, 100), 0, "no colour"),
        ((0, 0, 255), 0, "dark"),
        ((90, 200, 120), 0, "not the colours"),
    ],
)
def test_pictures_of_one_colour_and_of_any_size(shape, colour, share, word):
    tissue = find_tissue(np.full((*shape, 3), colour, np.uint8))
    assert (tissue.mask.shape, tissue.mask.mean()) == (shape, share)
    assert word in tissue.note + tissue.refusal
    assert bool(word) == bool(tissue.note + tissue.refusal)


def test_the_grid_of_a_slide_that_is_tissue_throughout_has_every_cell_and_a_grey_slide_none(pyramid, tmp_path):
    pixels = Image.fromarray(open_slide(pyramid).read(5200, 5000, 1300, 1300))
    pixels.save(tmp_path / "tissue.png")
    pixels.convert("L").save(tmp_path / "grey.png")
    with Decoder() as decoder:
        assert len(decoder.describe(tmp_path / "tissue.png", pitch_um=100, mpp=0.688).names) == 81
        with pytest.raises(UnknownTissue, match=r"grey\.png: the picture has no colour.*--spots"):
            decoder.describe(tmp_path / "grey.png", pitch_um=100, mpp=0.688)
        info = decoder.describe(tmp_path / "grey.png")
    assert info.tissue_fraction == 0
    assert "no colour" in info.note
